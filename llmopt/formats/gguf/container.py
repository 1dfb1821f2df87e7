"""The GGUF container, versions 2 and 3: typed metadata and where each tensor lies. No torch.

A file is magic, version, two counts, the metadata, the tensors' descriptions, padding and the
data. Nothing in it is believed before it is checked against the file's size, so that what a
damaged or hostile file costs is bounded.
"""

from __future__ import annotations

import math
import os
import re
import struct
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from llmopt.errors import RequestError
from llmopt.formats.files import open_regular
from llmopt.specs.ggml import GGML_TYPES

MAGIC = b"GGUF"
#: keys and values: scalars, strings, bytes for arrays of uint8, lists for other arrays, and Typed
Metadata = dict[str, object]

#: struct formats of the scalars, by the number that files give a type
_SCALARS = {
    0: "B",
    1: "b",
    2: "H",
    3: "h",
    4: "I",
    5: "i",
    6: "f",
    7: "?",
    10: "Q",
    11: "q",
    12: "d",
}
_STRING, _ARRAY = 8, 9
_TYPES_BY_NUMBER = {spec.number: spec for spec in GGML_TYPES.values()}

#: ggml has no tensors of more dimensions, and no longer names
_MAX_DIMENSIONS = 4
_MAX_NAME = 63
#: far above what any vocabulary needs; they bound the memory that a file can ask for
_MAX_STRING = 64 << 20
_MAX_ELEMENTS = 8 << 20
_MAX_HEADER = 512 << 20
_BUFFER = 1 << 20

SPLIT_NAME = "{stem}-{number:05d}-of-{count:05d}.gguf"
_SPLIT = re.compile(r"(?P<stem>.+)-(?P<number>\d{5})-of-(?P<count>\d{5})\.gguf")
_SPLIT_KEYS = ("split.no", "split.count", "split.tensors.count")


@dataclass(frozen=True)
class Typed:
    """A value with the number that files give its type, and of a list with that of its elements."""

    value: Any
    kind: int
    element: int | None = None


@dataclass(frozen=True)
class GgufTensor:
    """One tensor: bytes [start, end) of `file`. type_id: in specs.ggml. shape: rows first."""

    name: str
    type_id: str
    shape: tuple[int, ...]
    file: Path
    start: int
    end: int


@dataclass(frozen=True)
class GgufFile:
    """A model in one file, or in the files that it was split into. typed: the metadata again."""

    paths: tuple[Path, ...]
    version: int
    metadata: Metadata
    tensors: Mapping[str, GgufTensor]
    alignment: int
    typed: Mapping[str, Typed]

    @property
    def architecture(self) -> str:
        """llama.cpp's name of what the model is."""
        found = self.metadata.get("general.architecture")
        if not isinstance(found, str):
            raise RequestError(f"{self.paths[0].name} does not say its general.architecture")
        return found

    @property
    def block_count(self) -> int:
        """How many blocks the model has."""
        count = self.metadata.get(f"{self.architecture}.block_count")
        # each has tensors of its own
        if type(count) is not int or not 0 < count <= len(self.tensors):
            raise RequestError(f"{self.paths[0].name} says it has {count!r} blocks"[:200])
        return count


def read_gguf(path: Path) -> GgufFile:
    """The header of a GGUF file, and of the files it goes on in where it is the first of several.

    RequestError with one sentence for a file that is damaged, incomplete or of an unknown kind.
    """
    first = _read_one(path)
    count = first.metadata.get("split.count", 1)
    if not isinstance(count, int) or count < 2:
        return first
    match = _SPLIT.fullmatch(path.name)
    if match is None or int(match["count"]) != count:
        raise RequestError(
            f"{path.name} is one of {count} files of a model, but its name does not say which"
        )
    if int(match["number"]) != 1:
        raise RequestError(
            f"{path.name} is not the first of the {count} files of its model",
            hint=f"name {SPLIT_NAME.format(stem=match['stem'], number=1, count=count)}",
        )
    return _merged(first, [_sibling(path, match["stem"], n, count) for n in range(2, count + 1)])


def first_file(folder: Path) -> Path | None:
    """The GGUF file that is the model of a folder; None where there is none, or safetensors.

    RequestError where several could be. Projectors of images, which lie beside, are no models.
    """
    found = sorted(path for path in folder.glob("*.gguf") if not path.name.startswith("mmproj"))
    if not found or any(folder.glob("*.safetensors")):
        return None
    numbers = {path: match for path in found if (match := _SPLIT.fullmatch(path.name))}
    first = [path for path in found if path not in numbers or int(numbers[path]["number"]) == 1]
    if len(first) > 1:
        raise RequestError(
            f"{folder} holds {len(first)} GGUF models",
            hint=f"name the file: {first[0].name} or {first[1].name}",
        )
    return (first or found)[0]


def _sibling(path: Path, stem: str, number: int, count: int) -> GgufFile:
    other = path.with_name(SPLIT_NAME.format(stem=stem, number=number, count=count))
    if not other.is_file():
        raise RequestError(f"{path.name} is one of {count} files, and {other.name} is missing")
    return _read_one(other)


def _merged(first: GgufFile, rest: list[GgufFile]) -> GgufFile:
    """One model of the files it was split into, which must be in order and complete."""
    tensors: dict[str, GgufTensor] = {}
    for number, part in enumerate([first, *rest]):
        name = part.paths[0].name
        if part.metadata.get("split.no") != number:
            raise RequestError(f"{name} does not say that it is file {number + 1} of its model")
        for tensor in part.tensors.values():
            if tensor.name in tensors:
                raise RequestError(
                    f"tensor {tensor.name} is in both {tensors[tensor.name].file.name} and {name}"
                )
            tensors[tensor.name] = tensor
    promised = first.metadata.get("split.tensors.count", len(tensors))
    if promised != len(tensors):
        raise RequestError(
            f"the files of {first.paths[0].name} hold {len(tensors)} tensors, not {promised}"
        )
    typed = {key: value for key, value in first.typed.items() if key not in _SPLIT_KEYS}
    metadata = {key: each.value for key, each in typed.items()}
    paths = first.paths + tuple(path for part in rest for path in part.paths)
    return GgufFile(paths, first.version, metadata, tensors, first.alignment, typed)


def _read_one(path: Path) -> GgufFile:
    try:
        with open_regular(path, _BUFFER) as file:
            return _Reader(path, file, os.fstat(file.fileno()).st_size).read()
    except OSError as error:
        raise RequestError(f"cannot read {path}: {error.strerror}") from error


class _Reader:
    """Reads one file from front to back; every count is checked before anything is allocated."""

    def __init__(self, path: Path, file: BinaryIO, size: int) -> None:
        self._name = path.name
        self._path = path
        self._file = file
        self._size = size
        self._limit = min(size, _MAX_HEADER)
        self._position = 0
        self._elements = 0

    def read(self) -> GgufFile:
        version = self._version()
        tensor_count = self._scalar("Q")
        key_count = self._scalar("Q")
        # a tensor's description takes at least 32 bytes, a key 13
        if tensor_count * 32 + key_count * 13 > self._size:
            raise self._bad(
                f"claims {tensor_count} tensors and {key_count} keys in {self._size} bytes"
            )
        typed = self._metadata(key_count)
        metadata = {key: each.value for key, each in typed.items()}
        alignment = metadata.get("general.alignment", 32)
        # `type`: a bool is an int to isinstance
        if type(alignment) is not int or alignment < 1 or alignment & (alignment - 1):
            raise self._bad(f"has the invalid alignment {alignment!r}")
        described = [self._describe() for _ in range(tensor_count)]
        data = -(-self._position // alignment) * alignment
        tensors: dict[str, GgufTensor] = {}
        for name, shape, number, offset in described:
            if name in tensors:
                raise self._bad(f"holds tensor {name} twice")
            tensors[name] = self._tensor(name, shape, number, offset, data, alignment)
        self._check_overlaps(tensors.values())
        return GgufFile((self._path,), version, metadata, tensors, alignment, typed)

    def _version(self) -> int:
        magic = self._take(4)
        if magic != MAGIC:
            raise self._bad("is not a GGUF file: it does not begin with GGUF")
        version: int = self._scalar("I")
        if version and not version & 0xFFFF:
            raise self._bad("is big-endian, which is not supported")
        if version not in (2, 3):
            raise self._bad(f"has the GGUF version {version}; versions 2 and 3 can be read")
        return version

    def _metadata(self, count: int) -> dict[str, Typed]:
        metadata: dict[str, Typed] = {}
        for _ in range(count):
            key = self._word("a key")
            if key in metadata:
                raise self._bad(f"has the key {key!r} twice")
            kind = self._scalar("I")
            metadata[key] = (
                self._array(key) if kind == _ARRAY else Typed(self._value(kind, key), kind)
            )
        return metadata

    def _value(self, kind: int, key: str) -> Any:
        if kind == _STRING:
            return self._string(f"the value of {key}")
        if kind not in _SCALARS:
            raise self._bad(f"gives {key!r} the unknown type {kind}")
        return self._scalar(_SCALARS[kind])

    def _array(self, key: str) -> Typed:
        kind, count = self._scalar("I"), self._scalar("Q")
        if kind != _STRING and kind not in _SCALARS:
            raise self._bad(f"gives the elements of {key!r} the unknown type {kind}")
        width = 8 if kind == _STRING else struct.calcsize("<" + _SCALARS[kind])
        self._elements += count
        if self._elements > _MAX_ELEMENTS or count * width > self._limit - self._position:
            raise self._bad(f"claims {count} elements for {key!r}, more than it can have")
        if kind == _STRING:
            return Typed(self._strings(count, f"an element of {key}"), _ARRAY, kind)
        raw = self._take(count * width)
        listed = raw if kind == 0 else list(struct.unpack(f"<{count}{_SCALARS[kind]}", raw))
        return Typed(listed, _ARRAY, kind)

    def _describe(self) -> tuple[str, tuple[int, ...], int, int]:
        """Name, shape with rows first, number of the type, offset in the data."""
        name = self._word("a tensor's name")
        if len(name.encode()) > _MAX_NAME:
            raise self._bad(f"has a tensor name of {len(name)} characters")
        dimensions = self._scalar("I")
        if not 1 <= dimensions <= _MAX_DIMENSIONS:
            raise self._bad(f"gives tensor {name} {dimensions} dimensions")
        shape = struct.unpack(f"<{dimensions}Q", self._take(8 * dimensions))
        return name, tuple(reversed(shape)), self._scalar("I"), self._scalar("Q")

    def _tensor(
        self, name: str, shape: tuple[int, ...], number: int, offset: int, data: int, alignment: int
    ) -> GgufTensor:
        spec = _TYPES_BY_NUMBER.get(number)
        if spec is None:
            raise self._bad(f"gives tensor {name} the type {number}, which is not known")
        if 0 in shape:
            raise self._bad(f"gives tensor {name} the shape {list(shape)}")
        if shape[-1] % spec.block:
            raise self._bad(
                f"gives tensor {name} rows of {shape[-1]} weights, "
                f"which blocks of {spec.block} ({spec.id}) do not fill"
            )
        if offset % alignment:
            raise self._bad(f"puts tensor {name} at byte {offset} of the data, which is unaligned")
        start = data + offset
        end = start + math.prod(shape) // spec.block * spec.nbytes
        if end > self._size:
            raise self._bad(f"is truncated: tensor {name} ends at byte {end} of {self._size}")
        return GgufTensor(name, spec.id, shape, self._path, start, end)

    def _check_overlaps(self, tensors: Iterable[GgufTensor]) -> None:
        end, before = 0, ""
        for tensor in sorted(tensors, key=lambda tensor: tensor.start):
            if tensor.start < end:
                raise self._bad(f"lets tensors {before} and {tensor.name} overlap")
            end, before = tensor.end, tensor.name

    def _strings(self, count: int, what: str) -> list[str]:
        # a vocabulary has some hundred thousand: as few calls for each as there can be
        found, read, number = [], self._file.read, int.from_bytes
        for _ in range(count):
            length = number(read(8), "little")
            self._position += 8 + length
            if length > _MAX_STRING:
                raise self._bad(f"claims {length} bytes for {what}, more than it can have")
            if self._position > self._limit:
                raise self._cut()
            found.append(read(length))
        try:
            return [raw.decode("utf-8") for raw in found]
        except UnicodeDecodeError:
            raise self._bad(f"has {what} that is not UTF-8 text") from None

    def _string(self, what: str) -> str:
        return self._strings(1, what)[0]

    def _word(self, what: str) -> str:
        """A string that messages may quote."""
        word = self._string(what)
        if not word.isprintable() or not word:
            raise self._bad(f"has {what} that is no word")
        return word

    def _scalar(self, code: str) -> Any:
        return struct.unpack("<" + code, self._take(struct.calcsize("<" + code)))[0]

    def _take(self, count: int) -> bytes:
        if count > self._limit - self._position:
            raise self._cut()
        self._position += count
        taken = self._file.read(count)
        if len(taken) < count:
            raise self._bad("became shorter while it was read")
        return taken

    def _cut(self) -> RequestError:
        if self._limit < self._size:
            return self._bad(f"has a header of more than {_MAX_HEADER >> 20} MiB")
        return self._bad(f"is truncated: {self._size} bytes are fewer than its header needs")

    def _bad(self, fault: str) -> RequestError:
        return RequestError(f"{self._name} {fault}")
