"""Writing GGUF files with memory bounded by one piece of one tensor. No torch.

The gguf package writes what comes before the data; the data is streamed behind it here.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from llmopt.errors import LlmoptError, RequestError
from llmopt.formats.gguf.container import SPLIT_NAME, Typed
from llmopt.formats.tensor_header import TensorHeader
from llmopt.specs.ggml import GGML_TYPES

#: byte ranges to copy one after another, or what gives the bytes piece by piece
Source = Sequence[TensorHeader] | Callable[[], Iterable[bytes | memoryview]]

ALIGNMENT = 32
_COPY_BYTES = 8 << 20


@dataclass(frozen=True)
class TensorEntry:
    """One tensor to write. type_id: in specs.ggml. shape: rows first, in weights."""

    name: str
    type_id: str
    shape: tuple[int, ...]
    source: Source

    @property
    def nbytes(self) -> int:
        """Bytes of the data, without the padding behind it."""
        spec = GGML_TYPES[self.type_id]
        return math.prod(self.shape) // spec.block * spec.nbytes


def write_gguf(
    path: Path,
    metadata: Mapping[str, Any],
    entries: Sequence[TensorEntry],
    max_file_bytes: int | None = None,
) -> list[Path]:
    """Write a model in order; returns the files, more than one where `max_file_bytes` is less.

    Values of the metadata: str, bool, int (uint32 where it fits), float (float32), bytes (uint8
    array), lists of str, bool, int (int32 where it fits) or float (float32), and Typed for any
    other type; empty strings and lists are left out, as llama.cpp's own tools do. Each file appears
    whole or not at all; split files have the names that llama.cpp looks for. The same input gives
    the same bytes.
    """
    groups = _deal(entries, max_file_bytes)
    if len(groups) == 1:
        _write_one(path, metadata, {}, groups[0])
        return [path]
    names = [
        path.with_name(SPLIT_NAME.format(stem=path.stem, number=number, count=len(groups)))
        for number in range(1, len(groups) + 1)
    ]
    for number, (name, group) in enumerate(zip(names, groups, strict=True)):
        split = {"no": number, "count": len(groups), "tensors.count": len(entries)}
        _write_one(name, metadata if number == 0 else {}, split, group)
    return names


def header_bytes(metadata: Mapping[str, Any], entries: Sequence[TensorEntry], scratch: Path) -> int:
    """What stands before the data of a file, padding included; `scratch` is a file to write to."""
    _write_header(scratch, metadata, {}, entries)
    size = scratch.stat().st_size
    scratch.unlink()
    return size + ALIGNMENT * (len(entries) + 1)


def _deal(entries: Sequence[TensorEntry], max_file_bytes: int | None) -> list[list[TensorEntry]]:
    groups: list[list[TensorEntry]] = [[]]
    size = 0
    for entry in entries:
        if max_file_bytes and groups[-1] and size + entry.nbytes > max_file_bytes:
            groups.append([])
            size = 0
        groups[-1].append(entry)
        size += entry.nbytes
    return groups


def _write_one(
    path: Path,
    metadata: Mapping[str, Any],
    split: Mapping[str, int],
    entries: Sequence[TensorEntry],
) -> None:
    partial = path.with_name(path.name + ".partial")
    _write_header(partial, metadata, split, entries)
    with partial.open("ab") as file:
        for entry in entries:
            _pad(file)
            start = file.tell()
            _write_data(entry, file)
            if file.tell() - start != entry.nbytes:
                raise LlmoptError(
                    f"tensor {entry.name} has {file.tell() - start} bytes, not {entry.nbytes}"
                )
        _pad(file)
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)
    _sync_folder(path.parent)


def _write_header(
    path: Path,
    metadata: Mapping[str, Any],
    split: Mapping[str, int],
    entries: Sequence[TensorEntry],
) -> None:
    import numpy as np
    from gguf import GGMLQuantizationType, GGUFValueType, GGUFWriter

    rest = dict(metadata)
    writer = GGUFWriter(path, rest.pop("general.architecture", ""))
    if split:
        # the types that llama.cpp reads these keys as
        kinds = {"tensors.count": GGUFValueType.INT32}
        for key, value in split.items():
            writer.add_key_value(f"split.{key}", value, kinds.get(key, GGUFValueType.UINT16))
    for key, value in rest.items():
        _add(writer, key, value)
    for entry in entries:
        spec = GGML_TYPES[entry.type_id]
        writer.add_tensor_info(
            entry.name,
            entry.shape,
            np.dtype(np.float32),
            entry.nbytes,
            GGMLQuantizationType(spec.number),
        )
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    writer.close()


def _add(writer: Any, key: str, value: Any) -> None:
    from gguf import GGUFValueType

    if isinstance(value, Typed):
        listed = value.element is not None
        if value.value or not listed:
            element = GGUFValueType(value.element) if listed else None
            writer.add_key_value(key, value.value, GGUFValueType(value.kind), element)
    elif isinstance(value, bytes | list | tuple):
        if value:
            kind = "UINT8" if isinstance(value, bytes) else _kind(*value, integer="INT32")
            writer.add_key_value(key, value, GGUFValueType.ARRAY, GGUFValueType[kind])
    elif value != "":
        writer.add_key_value(key, value, GGUFValueType[_kind(value)])


def _kind(*values: Any, integer: str = "UINT32") -> str:
    """The name of the type that scalars of one kind are stored as."""
    if isinstance(values[0], bool):
        return "BOOL"
    if isinstance(values[0], int):
        low, high = (0, 1 << 32) if integer == "UINT32" else (-(1 << 31), 1 << 31)
        return integer if low <= min(values) and max(values) < high else "INT64"
    return "FLOAT32" if isinstance(values[0], float) else "STRING"


def _write_data(entry: TensorEntry, file: BinaryIO) -> None:
    if callable(entry.source):
        for piece in entry.source():
            file.write(piece)
        return
    for header in entry.source:
        _copy_range(header, file)


def _copy_range(header: TensorHeader, target: BinaryIO) -> None:
    buffer = memoryview(bytearray(min(header.nbytes, _COPY_BYTES)))
    with header.file.open("rb", buffering=0) as source:
        source.seek(header.start)
        left = header.nbytes
        while left:
            count = source.readinto(buffer[: min(left, len(buffer))])
            if not count:
                raise RequestError(f"{header.file.name} ended inside tensor {header.name}")
            target.write(buffer[:count])
            left -= count


def _pad(file: BinaryIO) -> None:
    file.write(bytes(-file.tell() % ALIGNMENT))


def _sync_folder(folder: Path) -> None:
    """Make a rename survive a power failure."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
