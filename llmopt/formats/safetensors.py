"""Reading tensors and writing safetensors with memory bounded by one tensor, or by one block.

Tensors are read with pread into a fresh buffer, not mapped: what a process holds is then what it
asked for, and no page of the file counts as its memory.
"""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import BinaryIO

import torch
from torch import Tensor

from llmopt.errors import LlmoptError, RequestError
from llmopt.formats.gguf.reading import decoded, undone
from llmopt.formats.headers import INDEX, WEIGHTS
from llmopt.formats.safetensors_header import read_file_headers, read_metadata
from llmopt.formats.tensor_header import TensorHeader

TORCH_DTYPES = {
    "BOOL": torch.bool,
    "U8": torch.uint8,
    "I8": torch.int8,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "F8_E8M0": torch.float8_e8m0fnu,
    "I16": torch.int16,
    "U16": torch.uint16,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I32": torch.int32,
    "U32": torch.uint32,
    "F32": torch.float32,
    "I64": torch.int64,
    "U64": torch.uint64,
    "F64": torch.float64,
}
DTYPE_NAMES = {dtype: name for name, dtype in TORCH_DTYPES.items()}

_COPY_BYTES = 8 << 20
_PART_SUFFIX = ".safetensors"


def torch_dtype(header: TensorHeader) -> torch.dtype:
    """What a tensor is read as: float32 where it is in blocks."""
    return TORCH_DTYPES.get(header.dtype, torch.float32)


def read_tensor(header: TensorHeader) -> Tensor:
    """The tensor, in memory of its own; decoded and put in order where it is stored otherwise."""
    raw = _read_range(header)
    shape = header.shape
    if header.arranged is not None and header.arranged.transposed:
        shape = shape[::-1]
    if header.dtype in TORCH_DTYPES:
        value = raw.view(TORCH_DTYPES[header.dtype]).reshape(shape)
    else:
        value = decoded(raw, header.dtype, shape)
    return value if header.arranged is None else undone(value, header.arranged)


def read_rows(header: TensorHeader, start: int, stop: int) -> Tensor:
    """Rows of a tensor whose rows lie in the file as it has them; decoded where they are blocks."""
    assert header.arranged is None
    row = header.nbytes // header.shape[0]
    first, end = header.start + start * row, header.start + stop * row
    shape = (stop - start, *header.shape[1:])
    return read_tensor(replace(header, shape=shape, start=first, end=end))


def _read_range(header: TensorHeader) -> Tensor:
    """uint8 [n]: the bytes as they are in the file."""
    raw = torch.empty(header.nbytes, dtype=torch.uint8)
    view = raw.numpy().data
    with header.file.open("rb", buffering=0) as file:
        file.seek(header.start)
        done = 0
        while done < header.nbytes:
            count = file.readinto(view[done:])
            if not count:
                raise RequestError(f"{header.file.name} ended inside tensor {header.name}")
            done += count
    return raw


def announce(headers: Iterable[TensorHeader]) -> None:
    """Let the system read what is soon asked for while others compute, where it can."""
    if not hasattr(os, "posix_fadvise"):
        return
    places: dict[Path, list[TensorHeader]] = {}
    for header in headers:
        places.setdefault(header.file, []).append(header)
    for path, found in places.items():
        with path.open("rb", buffering=0) as file:
            for header in found:
                os.posix_fadvise(file.fileno(), header.start, header.nbytes, os.POSIX_FADV_WILLNEED)


def write_file(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """One safetensors file, on disk whole or not at all, even if the power fails."""
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    layout = [
        (name, DTYPE_NAMES[tensor.dtype], tuple(tensor.shape), tensor.nbytes)
        for name, tensor in tensors.items()
    ]
    order, text = _header(layout, metadata)
    with _appearing(path) as file:
        file.write(text)
        for name in order:
            _write_tensor(tensors[name], file)


def write_rows(
    path: Path, name: str, shape: Sequence[int], dtype: torch.dtype, pieces: Iterable[Tensor],
    metadata: Mapping[str, str],
) -> None:  # fmt: skip
    """A file as `write_file` makes it of one tensor, whose rows come some at a time."""
    size = math.prod(shape) * dtype.itemsize
    _, text = _header([(name, DTYPE_NAMES[dtype], tuple(shape), size)], metadata)
    with _appearing(path) as file:
        file.write(text)
        for piece in pieces:
            _write_tensor(piece.contiguous(), file)


@contextmanager
def _appearing(path: Path) -> Iterator[BinaryIO]:
    """A file to write that is on disk, under its name, when all is in it."""
    partial = path.with_name(path.name + ".partial")
    with partial.open("wb") as file:
        yield file
        _to_disk(file)
    partial.replace(path)
    _sync_folder(path.parent)


def natural_key(name: str) -> list[tuple[int, str]]:
    """Sorts names with their numbers as numbers: layers.2 comes before layers.10."""
    return [
        (int(piece), "") if piece.isdecimal() else (-1, piece) for piece in re.split(r"(\d+)", name)
    ]


class ShardWriter:
    """Collects tensors in part files as they are finished, then lays them out as a checkpoint.

    A part is a safetensors file in `folder` that appears at once and complete, so a killed run
    keeps all that it finished. Tensors that do not change are not written into parts: `keep`
    notes where they lie, and `finalize` copies their bytes.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._kept: dict[str, TensorHeader] = {}
        folder.mkdir(parents=True, exist_ok=True)

    def parts(self) -> list[str]:
        """Names of the finished parts, in natural order."""
        names = (path.name.removesuffix(_PART_SUFFIX) for path in self._files())
        return sorted(names, key=natural_key)

    def write(self, part: str, tensors: Mapping[str, Tensor], note: str = "") -> None:
        """Finish a part; `note` is text that `read_note` gives back."""
        write_file(self._path(part), tensors, {"format": "pt", "note": note})

    def headers(self, part: str) -> dict[str, TensorHeader]:
        """The tensors of a finished part."""
        return read_file_headers(self._path(part))

    def read_note(self, part: str) -> str:
        """The note that came with a finished part."""
        return read_metadata(self._path(part)).get("note", "")

    def keep(self, name: str, header: TensorHeader) -> None:
        """Put a stored tensor into the result unchanged, as `name`."""
        if name in self._kept:
            raise LlmoptError(f"tensor {name} was given to the writer twice")
        self._kept[name] = header

    def clear(self) -> None:
        """Forget everything that was written or kept."""
        self._kept.clear()
        for path in self._folder.glob("*" + _PART_SUFFIX + "*"):
            path.unlink()

    def finalize(self, folder: Path, max_shard_bytes: int = 4 << 30) -> list[str]:
        """Write the checkpoint into `folder`; returns the names of the files, in order.

        Tensors are dealt to shards in natural order of their names, and lie within a shard with
        the widest dtypes first, so that each is aligned. The same tensors give the same bytes.
        """
        shards = _deal(self._collect(), max_shard_bytes)
        if len(shards) == 1:
            _copy_shard(folder / WEIGHTS, shards[0])
            return [WEIGHTS]
        count = len(shards)
        names = [f"model-{i:05d}-of-{count:05d}.safetensors" for i in range(1, count + 1)]
        for name, shard in zip(names, shards, strict=True):
            _copy_shard(folder / name, shard)
        weight_map = {
            tensor: name for name, shard in zip(names, shards, strict=True) for tensor in shard
        }
        total = sum(header.nbytes for shard in shards for header in shard.values())
        index = {"metadata": {"total_size": total}, "weight_map": weight_map}
        (folder / INDEX).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")
        return [*names, INDEX]

    def _collect(self) -> dict[str, TensorHeader]:
        """Every tensor of the result with its place, in natural order of names."""
        tensors = dict(self._kept)
        for part in self.parts():
            for name, header in self.headers(part).items():
                if name in tensors:
                    raise LlmoptError(f"tensor {name} was given to the writer twice")
                tensors[name] = header
        if not tensors:
            raise LlmoptError("there is no tensor to write")
        return {name: tensors[name] for name in sorted(tensors, key=natural_key)}

    def _files(self) -> Iterable[Path]:
        return self._folder.glob("*" + _PART_SUFFIX)

    def _path(self, part: str) -> Path:
        return self._folder / (part + _PART_SUFFIX)


def _header(
    layout: Iterable[tuple[str, str, tuple[int, ...], int]], metadata: Mapping[str, str]
) -> tuple[list[str], bytes]:
    """The order in which tensors (name, dtype, shape, bytes) lie, and the bytes before them."""

    def widest_first(item: tuple[str, str, tuple[int, ...], int]) -> tuple[int, object]:
        return -TORCH_DTYPES[item[1]].itemsize, natural_key(item[0])

    entries: dict[str, object] = {"__metadata__": dict(metadata)}
    order: list[str] = []
    position = 0
    for name, dtype, shape, nbytes in sorted(layout, key=widest_first):
        offsets = [position, position + nbytes]
        entries[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": offsets}
        order.append(name)
        position += nbytes
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return order, len(text).to_bytes(8, "little") + text


def _deal(
    tensors: Mapping[str, TensorHeader], max_shard_bytes: int
) -> list[dict[str, TensorHeader]]:
    shards: list[dict[str, TensorHeader]] = [{}]
    size = 0
    for name, header in tensors.items():
        if shards[-1] and size + _size(header) > max_shard_bytes:
            shards.append({})
            size = 0
        shards[-1][name] = header
        size += _size(header)
    return shards


def _copy_shard(path: Path, tensors: Mapping[str, TensorHeader]) -> None:
    layout = [
        (name, DTYPE_NAMES[torch_dtype(item)], item.stored_shape or item.shape, _size(item))
        for name, item in tensors.items()
    ]
    order, text = _header(layout, {"format": "pt"})
    with path.open("wb") as file:
        file.write(text)
        for name in order:
            if tensors[name].plain:
                _copy_range(tensors[name], file)
            else:
                _write_tensor(read_tensor(tensors[name]), file)
        _to_disk(file)


def _size(header: TensorHeader) -> int:
    """Bytes of a tensor in our files."""
    if header.plain:
        return header.nbytes
    return math.prod(header.shape) * torch_dtype(header).itemsize


def _write_tensor(tensor: Tensor, target: BinaryIO) -> None:
    # a zero-sized array has no buffer to write
    if tensor.numel():
        target.write(tensor.reshape(-1).view(torch.uint8).numpy().data)


def _copy_range(header: TensorHeader, target: BinaryIO) -> None:
    with header.file.open("rb") as source:
        source.seek(header.start)
        left = header.nbytes
        while left:
            piece = source.read(min(left, _COPY_BYTES))
            if not piece:
                raise LlmoptError(f"{header.file.name} ended inside tensor {header.name}")
            target.write(piece)
            left -= len(piece)


def _to_disk(file: BinaryIO) -> None:
    file.flush()
    os.fsync(file.fileno())


def _sync_folder(folder: Path) -> None:
    """Make a rename survive a power failure."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
