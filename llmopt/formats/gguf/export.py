"""A checkpoint as a GGUF file: what the convert stage calls. No torch.

    contents, checkpoint = read_contents(folder), Checkpoint.open(folder)
    wanted = placements(contents, tied=checkpoint.tied)
    entries = [Entry(p.name, type_id, p.shape, source) for p in wanted]
    write_gguf(path, metadata(contents, folder, name, file_type), entries)

`type_id` is F32 where `p.float32`. `source` is `weights.nearest(checkpoint, p, type_id)`, or a
function that yields the bytes of other codes, made for the rows that `weights.arranged` gives.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from pathlib import Path

from llmopt.formats.gguf import names
from llmopt.formats.gguf.container import Metadata
from llmopt.formats.gguf.metadata import model_metadata
from llmopt.formats.gguf.names import Placement
from llmopt.formats.gguf.tokenizer import tokenizer_metadata
from llmopt.formats.quantization import Contents

#: what llama.cpp looks up in the vocabulary of a model whose name has "phi-3" in it
_PHI3_TOKENS = {"</s>", "<unk>", "<s>", "<|endoftext|>"}


def placements(contents: Contents, *, tied: bool) -> list[Placement]:
    """The tensors of a GGUF file, in order; see `names.placements`."""
    return names.placements(contents.naming, contents.config, contents.tensors, tied=tied)


def metadata(contents: Contents, folder: Path, name: str, file_type: int) -> Metadata:
    """All metadata of a GGUF file: the model's, and that of the tokenizer in `folder`."""
    tokenizer = tokenizer_metadata(folder, contents.config)
    name = _harmless(name, tokenizer.get("tokenizer.ggml.tokens", ()))
    return {**model_metadata(contents.family, contents.config, name, file_type), **tokenizer}


def _harmless(name: str, tokens: Collection[str]) -> str:
    """A name that llama.cpp does not take for Phi-3's, whose tokens it then expects."""
    if set(tokens).issuperset(_PHI3_TOKENS):
        return name
    return re.sub(r"(?i)(phi)-?3", r"\1 3", name)
