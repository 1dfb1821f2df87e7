"""GGUF files of the tiny models, and what llama.cpp computes with them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import torch

from llmopt.formats.checkpoint import Checkpoint
from llmopt.formats.gguf.container import read_gguf
from llmopt.formats.gguf.metadata import model_metadata
from llmopt.formats.gguf.names import placements
from llmopt.formats.gguf.weights import nearest
from llmopt.formats.gguf.writer import TensorEntry, write_gguf
from llmopt.formats.quantization import read_contents
from llmopt.runtimes.llamacpp.native import native

#: what the families' settings in tests.models have to change for llama.cpp to run them
FOR_LLAMA_CPP: dict[str, dict[str, Any]] = {
    "mistral": {"sliding_window": None},
    "gemma2": {"tie_word_embeddings": True},
    "qwen2_moe": {"mlp_only_layers": []},
    "falcon": {"alibi": False},
}


def write_model(folder: Path, path: Path, type_id: str = "F32", **options: Any) -> list[Path]:
    """A model folder as a GGUF file without a tokenizer, plain rounding."""
    contents, checkpoint = read_contents(folder), Checkpoint.open(folder)
    entries = []
    for place in placements(
        contents.naming, contents.config, contents.tensors, tied=checkpoint.tied
    ):
        chosen = "F32" if place.float32 else type_id
        source = nearest(checkpoint, place, chosen)
        entries.append(TensorEntry(place.name, chosen, place.shape, source))
    about = model_metadata(contents.family, contents.config, "tiny", 0)
    about["tokenizer.ggml.model"] = "no_vocab"
    return write_gguf(path, about, entries, **options)


def altered(
    path: Path,
    values: Mapping[str, Any] = MappingProxyType({}),
    shapes: Mapping[str, tuple[int, ...]] = MappingProxyType({}),
) -> Path:
    """The same file with other values in its metadata, or zeros of another shape for a tensor."""
    found = read_gguf(path)
    entries = []
    for tensor in found.tensors.values():
        shape = shapes.get(tensor.name, tensor.shape)
        blank = TensorEntry(tensor.name, tensor.type_id, shape, [])
        data = path.read_bytes()[tensor.start : tensor.end]
        data = bytes(blank.nbytes) if tensor.name in shapes else data
        entries.append(replace(blank, source=partial(list, [data])))
    write_gguf(path, {**found.metadata, **values}, entries)
    return path


def llama_cpp_logits(path: Path, tokens: list[int]) -> torch.Tensor:
    """float32 [length, vocabulary] of llama.cpp, computed as exactly as it can.

    Flash attention, and keys and values in half precision, would each cost three digits.
    """
    cpp = native().api
    model_settings = cpp.llama_model_default_params()
    model_settings.use_extra_bufts = False
    model = cpp.llama_model_load_from_file(str(path).encode(), model_settings)
    assert model, f"llama.cpp does not load {path}"
    settings = cpp.llama_context_default_params()
    settings.n_ctx = settings.n_batch = settings.n_ubatch = 64
    settings.type_k = settings.type_v = cpp.GGML_TYPE_F32
    settings.flash_attn_type = 0
    settings.n_threads = settings.n_threads_batch = 1
    context = cpp.llama_init_from_model(model, settings)
    size = cpp.llama_vocab_n_tokens(cpp.llama_model_get_vocab(model))
    batch = cpp.llama_batch_init(len(tokens), 0, 1)
    batch.n_tokens = len(tokens)
    for index, token in enumerate(tokens):
        batch.token[index], batch.pos[index] = token, index
        batch.seq_id[index][0], batch.n_seq_id[index], batch.logits[index] = 0, 1, 1
    assert cpp.llama_decode(context, batch) == 0
    rows = [cpp.llama_get_logits_ith(context, index) for index in range(len(tokens))]
    found = np.stack([np.ctypeslib.as_array(row, (size,)).copy() for row in rows])
    cpp.llama_batch_free(batch)
    cpp.llama_free(context)
    cpp.llama_model_free(model)
    return torch.from_numpy(found)
