"""Weights that exist only as pickles, as a safetensors copy that all else can read."""

from __future__ import annotations

import hashlib
import os
import pickle
import shutil
from pathlib import Path

import torch
from torch import Tensor

from llmopt.errors import RequestError
from llmopt.formats.headers import OF_TRAINING, PICKLES, shard_names
from llmopt.formats.safetensors import DTYPE_NAMES
from llmopt.formats.shards import ShardWriter
from llmopt.formats.side_files import copy_files, note_left_out, side_files

_INDEX = "pytorch_model.bin.index.json"
#: files that say what the weights are, or whose
_OWN = ("config.json", "README.md", "quantize_config.json")


def unpickled(folder: Path, cache: Path) -> Path:
    """A copy of a model directory with safetensors, made once in `cache`; itself if it has them.

    Pickles may build plain tensors and nothing else. RequestError where they ask for more, or
    hold no tensors.
    """
    if any(folder.glob("*.safetensors")):
        return folder
    files = _pickles(folder)
    others = side_files(folder, frozenset({*(path.name for path in files), _INDEX}))
    carried = [*(name for name in _OWN if (folder / name).is_file()), *others.carried]
    copy = cache / _fingerprint([*files, *(folder / n for n in carried)], others.left_out)
    if copy.is_dir():
        return copy
    making = copy.with_name(f"{copy.name}.{os.getpid()}")
    shutil.rmtree(making, ignore_errors=True)
    try:
        writer = ShardWriter(making / "parts")
        seen: dict[str, str] = {}
        for index, path in enumerate(files):
            tensors = _load(path)
            for name in tensors:
                if name in seen:
                    raise RequestError(f"tensor {name} is in both {seen[name]} and {path.name}")
                seen[name] = path.name
            writer.write(f"part-{index:05d}", {n: t.clone() for n, t in tensors.items()})
        if not seen:
            raise RequestError(f"{folder} has a config.json but no weights")
        writer.finalize(making)
        shutil.rmtree(making / "parts")
        copy_files(folder, carried, making)
        note_left_out(making, others.left_out)
        making.rename(copy)
    finally:
        shutil.rmtree(making, ignore_errors=True)
    return copy


def _pickles(folder: Path) -> list[Path]:
    if (folder / _INDEX).is_file():
        _, names = shard_names(folder / _INDEX)
        return [folder / name for name in names]
    files = sorted(path for path in folder.iterdir() if path.name.endswith(PICKLES))
    whole = [path for path in files if path.name == "pytorch_model.bin"]
    return whole or [path for path in files if not path.name.startswith(OF_TRAINING)]


def _fingerprint(files: list[Path], left_out: dict[str, str]) -> str:
    """What changes when a file does (its place, size and time), or what stays behind."""
    stats = [(str(path.resolve()), path.stat().st_size, path.stat().st_mtime_ns) for path in files]
    return hashlib.sha256(repr((stats, left_out)).encode()).hexdigest()[:24]


def _load(path: Path) -> dict[str, Tensor]:
    """The tensors of a .bin file, mapped; whatever else its pickle asks for is refused."""
    try:
        loaded = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except (OSError, RuntimeError, EOFError, pickle.UnpicklingError) as error:
        raise RequestError(f"{path.name} is not a file of plain tensors") from error
    if not isinstance(loaded, dict):
        raise RequestError(f"{path.name} does not hold a dictionary of tensors")
    tensors = {name: value for name, value in loaded.items() if isinstance(value, Tensor)}
    for name, tensor in tensors.items():
        if tensor.dtype not in DTYPE_NAMES:
            raise RequestError(f"tensor {name} of {path.name} has the dtype {tensor.dtype}")
    return tensors
