"""What artifacts are on disk."""

from __future__ import annotations

from pathlib import PurePath

from llmopt.specs.base import CHECKPOINT, KindSpec
from llmopt.specs.formats import FORMATS

KINDS: dict[str, KindSpec] = {
    CHECKPOINT: KindSpec(
        id=CHECKPOINT,
        title="a Hugging Face checkpoint",
        holds="model",
        module="llmopt.formats.checkpoint_kind",
        weights=(".safetensors",),
        runtimes=("torch",),
    ),
    "gguf": KindSpec(
        id="gguf",
        title="a GGUF file",
        holds="model",
        module="llmopt.formats.gguf.kind",
        files={".gguf": "model.gguf"},
        weights=(".gguf",),
        runtimes=("llama.cpp", "torch"),
    ),
    "imatrix": KindSpec(
        id="imatrix",
        title="an importance matrix",
        holds="advice",
        files={".gguf": "imatrix.gguf", ".dat": "imatrix.dat"},
    ),
    "bench": KindSpec(id="bench", title="results of a bench step", holds="results"),
    "allocation": KindSpec(id="allocation", title="an allocation to a budget", holds="advice"),
}


def kind_of(format_id: str | None) -> KindSpec:
    """The kind of an artifact by the `format` in its manifest; without one it is a checkpoint."""
    if format_id in FORMATS:
        return KINDS[FORMATS[format_id].kind]
    return KINDS.get(format_id or CHECKPOINT, KINDS[CHECKPOINT])


def kind_of_file(path: PurePath) -> KindSpec | None:
    """The kind of model that a file of this name stands for; None for any other file."""
    models = (spec for spec in KINDS.values() if spec.holds == "model")
    return next((spec for spec in models if path.suffix in spec.files), None)


def model_files() -> list[str]:
    """Ends of the names of files that stand for a model."""
    return [end for spec in KINDS.values() if spec.holds == "model" for end in spec.files]


def artifact_files() -> tuple[str, ...]:
    """Ends of the names of files that stand for an artifact."""
    return tuple(dict.fromkeys(end for spec in KINDS.values() for end in spec.files))


def weight_files() -> tuple[str, ...]:
    """Ends of the names of files with weights."""
    return tuple(end for spec in KINDS.values() for end in spec.weights)
