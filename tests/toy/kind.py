"""Toy files: weights as safetensors has them, and in their metadata the files that go with them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from llmopt.artifact import file_digest
from llmopt.formats.headers import read_config
from llmopt.formats.quantization import contents_of
from llmopt.formats.safetensors_header import read_file_headers, read_metadata
from llmopt.formats.tensor_header import Headers
from llmopt.formats.values import check_values
from llmopt.model.contents import Contents


def recognises(folder: Path) -> bool:
    """Whether there is a toy file."""
    return any(folder.glob("*.toy"))


def headers(folder: Path) -> Headers:
    """The tensors of the file, beside the folder's config.json."""
    return Headers(folder, read_config(folder), read_file_headers(next(folder.glob("*.toy"))))


def contents(folder: Path) -> Contents:
    """What the file and the config say of the model."""
    return contents_of(headers(folder), kind="toy")


def check(folder: Path, progress: Callable[[int, int], None]) -> None:
    """All numbers are numbers."""
    check_values(headers(folder), progress)


def model_folder(path: Path, caches: Path) -> Path:
    """The files in the metadata, and a link."""
    folder = caches / "toy" / file_digest(path)
    if not folder.is_dir():
        folder.mkdir(parents=True)
        for name, text in read_metadata(path).items():
            (folder / name).write_text(text, encoding="utf-8")
        (folder / "model.toy").symlink_to(path.resolve())
    return folder
