"""Models in GGUF files. No torch. llmopt.formats.kind.Kind."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from llmopt.formats.gguf.container import first_file, read_gguf
from llmopt.formats.gguf.quantization import described
from llmopt.formats.gguf.restore import restore
from llmopt.formats.gguf.view import model_folder
from llmopt.formats.headers import read_config
from llmopt.formats.quantization import contents_of
from llmopt.formats.tensor_header import Headers
from llmopt.model.contents import Contents
from llmopt.specs.formats import GGUF

__all__ = ["check", "contents", "headers", "model_folder", "recognises"]


def recognises(folder: Path) -> bool:
    """Whether there is a GGUF file, and no weights in safetensors."""
    return first_file(folder) is not None


def headers(folder: Path) -> Headers:
    """The tensors of the file under the names of a checkpoint, beside the folder's config.json."""
    config = read_config(folder)
    path = first_file(folder)
    assert path is not None
    found = restore(read_gguf(path), config)
    config = {key: value for key, value in config.items() if key != "quantization_config"}
    if found.types:
        config["quantization_config"] = described(found.types)
    return Headers(folder, config, found.tensors)


def contents(folder: Path) -> Contents:
    """What the file and the config say of the model."""
    return contents_of(headers(folder), kind=GGUF)


def check(folder: Path, progress: Callable[[int, int], None]) -> None:
    """The tensors are those that the config asks for, and all numbers are numbers."""
    from llmopt.formats.fit import check_tensors  # torch, for what was not looked at before
    from llmopt.formats.values import check_values

    check_tensors(folder)
    check_values(headers(folder), progress)
