"""How a kind of artifact that holds a model is read. No torch."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Protocol

from llmopt.formats.tensor_header import Headers
from llmopt.model.contents import Contents
from llmopt.specs import CHECKPOINT, KINDS, KindSpec, load


class Kind(Protocol):
    """What the module of a KindSpec provides. A folder has the weights and config.json."""

    def recognises(self, folder: Path) -> bool:
        """Whether a folder's weights are of this kind, by the names of its files alone."""

    def headers(self, folder: Path) -> Headers:
        """The config, and where the tensors lie: names and shapes are a checkpoint's.

        RequestError, naming the file, for what is incomplete, inconsistent or damaged.
        """

    def contents(self, folder: Path) -> Contents:
        """The model as plans see it; errors as `headers`."""

    def check(self, folder: Path, progress: Callable[[int, int], None]) -> None:
        """RequestError where the model cannot be worked with, naming the tensor.

        `progress` is told how many of the weights' bytes were looked at, and of how many.
        """


class FileKind(Kind, Protocol):
    """What a kind provides besides whose models a file may stand for."""

    def model_folder(self, path: Path, caches: Path) -> Path:
        """A folder to read for a file that no artifact of ours stands behind, made in `caches`.

        It has a config, a tokenizer where the file holds one, and a link to the file.
        """


def kind_in(folder: Path) -> KindSpec:
    """The kind of the model in a folder; where none recognises it, a checkpoint that is damaged."""
    models = (spec for spec in KINDS.values() if spec.module is not None)
    return next((spec for spec in models if reader(spec).recognises(folder)), KINDS[CHECKPOINT])


def reader(spec: KindSpec) -> Kind:
    """What reads artifacts of a kind that holds models."""
    assert spec.module is not None
    kind: Kind = load(spec.module)
    return kind


def model_folder(spec: KindSpec, path: Path, caches: Path) -> Path:
    """The folder to read for a file; see FileKind."""
    assert spec.module is not None
    kind: FileKind = load(spec.module)
    return kind.model_folder(path, caches)
