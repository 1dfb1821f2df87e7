"""A checkpoint as a GGUF file: what the convert stage calls. No torch.

    contents, checkpoint = read_contents(folder), Checkpoint.open(folder)
    wanted = placements(contents, tied=checkpoint.tied)
    entries = [TensorEntry(p.name, type_id, p.shape, source) for p in wanted]
    write_gguf(path, metadata(contents, folder, {"general.name": name}, file_type), entries)

`type_id` is F32 where `p.float32`. `source` is `weights.nearest(checkpoint, p, type_id)`, or a
function that yields the bytes of other codes, made for the rows that `weights.arranged` gives.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from llmopt.formats.gguf import names
from llmopt.formats.gguf.container import GgufFile, Metadata, Typed, first_file, read_gguf
from llmopt.formats.gguf.metadata import QUANTIZATION_VERSION, model_metadata
from llmopt.formats.gguf.names import Placement
from llmopt.formats.gguf.tokenizer import tokenizer_metadata
from llmopt.model.contents import Contents
from llmopt.specs.formats import GGUF

#: what llama.cpp looks up in the vocabulary of a model whose name has "phi-3" in it
_PHI3_TOKENS = {"</s>", "<unk>", "<s>", "<|endoftext|>"}

#: keys that say how one file is laid out
_OF_ONE_FILE = ("general.alignment", "split.")


def placements(contents: Contents, *, tied: bool) -> list[Placement]:
    """The tensors of a GGUF file, in order; see `names.placements`."""
    return names.placements(contents.naming, contents.config, contents.tensors, tied=tied)


def metadata(
    contents: Contents, folder: Path, about: Mapping[str, Any], file_type: int
) -> Metadata:
    """All metadata of a GGUF file: the model's, and that of the tokenizer in `folder`.

    about: general.name and what else is said of the model. A file made of another GGUF file has
    all that stands there, as llama-quantize does it, but for what `about` replaces.
    """
    if contents.kind == GGUF and (source := first_file(folder)):
        found = {**_kept(read_gguf(source), file_type), **about}
    else:
        name = about["general.name"]
        found = model_metadata(contents.family, contents.config, name, file_type)
        found |= {**about, **tokenizer_metadata(folder, contents.config)}
    if "general.name" in about:
        tokens = found.get("tokenizer.ggml.tokens", ())
        known = tokens.value if isinstance(tokens, Typed) else tokens
        found["general.name"] = _harmless(about["general.name"], known)
    return found


def _kept(source: GgufFile, file_type: int) -> Metadata:
    """What llama-quantize carries over, with the types that the values have there."""
    return {
        **{key: each for key, each in source.typed.items() if not key.startswith(_OF_ONE_FILE)},
        "general.architecture": source.architecture,
        "general.quantization_version": QUANTIZATION_VERSION,
        "general.file_type": file_type,
    }


def _harmless(name: str, tokens: Collection[str]) -> str:
    """A name that llama.cpp does not take for Phi-3's, whose tokens it then expects."""
    if set(tokens).issuperset(_PHI3_TOKENS):
        return name
    return re.sub(r"(?i)(phi)-?3", r"\1 3", name)
