"""What a GGUF file says of its model: what the source does, and what the user adds."""

from __future__ import annotations

from llmopt.artifact import Artifact
from llmopt.formats.gguf.about import general
from llmopt.formats.gguf.container import Metadata
from llmopt.formats.imatrix import Imatrix
from llmopt.model.contents import Contents
from llmopt.report.card_metadata import front_matter
from llmopt.verbs.shared.settings import About


def description(about: About, parent: Artifact, contents: Contents) -> Metadata:
    """The keys that are not the model's own; a GGUF source's are carried over without them."""
    found = {} if contents.kind == "gguf" else general(front_matter(parent), about.model_name)
    if about.name is not None:
        found["general.name"] = about.name
    return found | dict(sorted(about.metadata.items()))


def of_imatrix(matrix: Imatrix, name: str) -> Metadata:
    """What llama-quantize notes of the importance matrix that it was given."""
    return {
        "quantize.imatrix.file": name,
        "quantize.imatrix.dataset": next(iter(matrix.datasets), ""),
        "quantize.imatrix.entries_count": len(matrix.entries),
        "quantize.imatrix.chunks_count": matrix.chunks,
    }
