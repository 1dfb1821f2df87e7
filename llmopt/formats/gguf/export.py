"""A checkpoint as a GGUF file: what the convert stage calls. No torch.

    contents, checkpoint = read_contents(folder), Checkpoint.open(folder)
    wanted = placements(contents, tied=checkpoint.tied)
    entries = [Entry(p.name, type_id, p.shape, source) for p in wanted]
    write_gguf(path, metadata(contents, folder, name, file_type), entries)

`type_id` is F32 where `p.float32`. `source` is `weights.nearest(checkpoint, p, type_id)`, or a
function that yields the bytes of other codes, made for the rows that `weights.arranged` gives.
"""

from __future__ import annotations

from pathlib import Path

from llmopt.formats.gguf import names
from llmopt.formats.gguf.container import Metadata
from llmopt.formats.gguf.metadata import model_metadata
from llmopt.formats.gguf.names import Placement
from llmopt.formats.gguf.tokenizer import tokenizer_metadata
from llmopt.formats.quantization import Contents


def placements(contents: Contents, *, tied: bool) -> list[Placement]:
    """The tensors of a GGUF file, in order; see `names.placements`."""
    return names.placements(contents.naming, contents.config, contents.tensors, tied=tied)


def metadata(contents: Contents, folder: Path, name: str, file_type: int) -> Metadata:
    """All metadata of a GGUF file: the model's, and that of the tokenizer in `folder`."""
    return {
        **model_metadata(contents.family, contents.config, name, file_type),
        **tokenizer_metadata(folder, contents.config),
    }
