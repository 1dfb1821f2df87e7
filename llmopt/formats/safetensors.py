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

from llmopt.errors import RequestError
from llmopt.formats.gguf.reading import decoded, undone
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
    order, text = header_bytes(layout, metadata)
    with appearing(path) as file:
        file.write(text)
        for name in order:
            write_tensor(tensors[name], file)


def write_rows(
    path: Path, name: str, shape: Sequence[int], dtype: torch.dtype, pieces: Iterable[Tensor],
    metadata: Mapping[str, str],
) -> None:  # fmt: skip
    """A file as `write_file` makes it of one tensor, whose rows come some at a time."""
    size = math.prod(shape) * dtype.itemsize
    _, text = header_bytes([(name, DTYPE_NAMES[dtype], tuple(shape), size)], metadata)
    with appearing(path) as file:
        file.write(text)
        for piece in pieces:
            write_tensor(piece.contiguous(), file)


@contextmanager
def appearing(path: Path) -> Iterator[BinaryIO]:
    """A file to write that is on disk, under its name, when all is in it."""
    partial = path.with_name(path.name + ".partial")
    with partial.open("wb") as file:
        yield file
        to_disk(file)
    partial.replace(path)
    _sync_folder(path.parent)


def natural_key(name: str) -> list[tuple[int, str]]:
    """Sorts names with their numbers as numbers: layers.2 comes before layers.10."""
    return [
        (int(piece), "") if piece.isdecimal() else (-1, piece) for piece in re.split(r"(\d+)", name)
    ]


def header_bytes(
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


def write_tensor(tensor: Tensor, target: BinaryIO) -> None:
    """A tensor's bytes, as they lie in such a file."""
    # a zero-sized array has no buffer to write
    if tensor.numel():
        target.write(tensor.reshape(-1).view(torch.uint8).numpy().data)


def to_disk(file: BinaryIO) -> None:
    """Make what was written survive a power failure."""
    file.flush()
    os.fsync(file.fileno())


def _sync_folder(folder: Path) -> None:
    """Make a rename survive a power failure."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
