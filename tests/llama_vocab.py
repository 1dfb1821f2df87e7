"""llama.cpp's own tokenizer on a GGUF file that has a vocabulary and no tensors."""

from __future__ import annotations

import ctypes
from pathlib import Path
from typing import Any

import pytest

from llmopt.formats.gguf.writer import write_gguf
from llmopt.runtimes.llamacpp.native import native

_MODEL = {
    "general.architecture": "llama",
    "llama.block_count": 1,
    "llama.context_length": 512,
    "llama.embedding_length": 64,
    "llama.feed_forward_length": 64,
    "llama.attention.head_count": 2,
    "llama.attention.head_count_kv": 2,
    "llama.attention.layer_norm_rms_epsilon": 1e-5,
    "llama.rope.dimension_count": 32,
}


class LlamaVocab:
    """`metadata` (the tokenizer's keys) written to `path` and loaded by llama.cpp."""

    def __init__(self, path: Path, metadata: dict[str, Any], name: str = "model") -> None:
        pytest.importorskip("llama_cpp")
        self.api = api = native().api
        write_gguf(path, {**_MODEL, "general.name": name, **metadata}, [])
        settings = api.llama_model_default_params()
        settings.vocab_only = True
        self._model = api.llama_model_load_from_file(str(path).encode(), settings)
        assert self._model, "llama.cpp refuses the file"
        self.vocab = api.llama_model_get_vocab(self._model)

    def __call__(
        self, text: str, *, add_special: bool = False, parse_special: bool = True
    ) -> list[int]:
        """Token ids of a text, as llama_tokenize gives them."""
        data = text.encode()
        room = len(data) + 8
        ids = (self.api.llama_token * room)()
        count = self.api.llama_tokenize(
            self.vocab, data, len(data), ids, room, add_special, parse_special
        )
        assert count >= 0
        return list(ids[:count])

    def piece(self, token: int) -> str:
        """The text of a token."""
        buffer = (ctypes.c_char * 256)()
        count = self.api.llama_token_to_piece(self.vocab, token, buffer, 256, 0, True)
        return bytes(buffer[:count]).decode()

    def ends(self, token: int) -> bool:
        """Whether a token ends generation."""
        return bool(self.api.llama_vocab_is_eog(self.vocab, token))
