"""The header of a safetensors file, believed only where it agrees with the file. No torch.

A file is an 8-byte little-endian length, a JSON header of that length and the data; only the first
two are read here.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from llmopt.errors import RequestError
from llmopt.formats.files import json_object, open_regular
from llmopt.formats.tensor_header import DTYPE_BYTES, TensorHeader

#: the safetensors library refuses longer headers, too
_MAX_HEADER_BYTES = 100_000_000


def read_file_headers(path: Path) -> dict[str, TensorHeader]:
    """The tensors of one safetensors file, checked against each other and the file's size."""
    text, data_start, size = _header_text(path)
    entries = json_object(text, f"the header of {path.name}")
    entries.pop("__metadata__", None)
    headers = {name: _entry(path, name, entry, data_start) for name, entry in entries.items()}
    _check_layout(path, headers.values(), data_start, size)
    return headers


def read_metadata(path: Path) -> dict[str, str]:
    """The free-form metadata of a safetensors file."""
    text, _, _ = _header_text(path)
    found = json_object(text, f"the header of {path.name}").get("__metadata__")
    stated = found if isinstance(found, dict) else {}
    return {key: value for key, value in stated.items() if isinstance(value, str)}


def _header_text(path: Path) -> tuple[bytes, int, int]:
    """The header's JSON, the offset at which data starts and the file's size."""
    try:
        with open_regular(path) as file:
            size = os.fstat(file.fileno()).st_size
            prefix = file.read(8)
            length = int.from_bytes(prefix, "little")
            if len(prefix) < 8 or 8 + length > size:
                raise RequestError(
                    f"{path.name} is truncated: {size} bytes are fewer than its header needs"
                )
            if length > _MAX_HEADER_BYTES:
                raise RequestError(f"{path.name} claims a header of {length} bytes")
            return file.read(length), 8 + length, size
    except OSError as error:
        raise RequestError(f"cannot read {path}: {error.strerror}") from error


def _entry(path: Path, name: str, entry: Any, data_start: int) -> TensorHeader:
    """One tensor's header, with offsets counted from the start of the file."""
    where = f"tensor {name} of {path.name}"
    if not isinstance(entry, dict):
        raise RequestError(f"{where} has no header")
    dtype: Any = entry.get("dtype")
    shape: Any = entry.get("shape")
    offsets: Any = entry.get("data_offsets")
    if dtype not in DTYPE_BYTES:
        raise RequestError(f"{where} has the unknown dtype {dtype!r}")
    if not _whole_numbers(shape):
        raise RequestError(f"{where} has the invalid shape {shape!r}")
    if not _whole_numbers(offsets) or len(offsets) != 2 or offsets[0] > offsets[1]:
        raise RequestError(f"{where} has the invalid offsets {offsets!r}")
    expected = math.prod(shape) * DTYPE_BYTES[dtype]
    if offsets[1] - offsets[0] != expected:
        raise RequestError(
            f"{where} has {offsets[1] - offsets[0]} bytes, but {dtype} {shape} takes {expected}"
        )
    start, end = (data_start + offset for offset in offsets)
    return TensorHeader(name, dtype, tuple(shape), path, start, end)


def _whole_numbers(value: Any) -> bool:
    return isinstance(value, list) and all(type(item) is int and item >= 0 for item in value)


def _check_layout(path: Path, headers: Iterable[TensorHeader], start: int, size: int) -> None:
    """The format allows neither overlaps nor holes: tensors cover the data exactly."""
    position = start
    for header in sorted(headers, key=lambda header: (header.start, header.end)):
        if header.end > size:
            raise RequestError(
                f"{path.name} is truncated: tensor {header.name} ends at byte {header.end}, "
                f"the file at {size}"
            )
        if header.start != position:
            fault = "overlaps another" if header.start < position else "follows a hole"
            raise RequestError(f"tensor {header.name} of {path.name} {fault} in the data")
        position = header.end
    if position != size:
        raise RequestError(f"{path.name} has {size - position} bytes that belong to no tensor")
