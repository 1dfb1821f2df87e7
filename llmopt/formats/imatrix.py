"""Importance matrices as llama.cpp's tools keep them: GGUF files, and the older binary form.

Both say, for the weights that a matrix product multiplies, what the squares of its inputs were on
average. Tensors have their names in GGUF files. A tensor with experts has a matrix for each.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch
from torch import Tensor

from llmopt.errors import LlmoptError, RequestError
from llmopt.formats.gguf.container import MAGIC, GgufFile, GgufTensor, read_gguf
from llmopt.formats.gguf.writer import TensorEntry, write_gguf
from llmopt.specs.formats import IMATRIX

#: tokens of a chunk; the older form does not say, and this is the tools' default
CHUNK = 512

_SUMS, _COUNTS = ".in_sum2", ".counts"
_DATASETS, _CHUNKS, _CHUNK_SIZE = (
    "imatrix.datasets", "imatrix.chunk_count", "imatrix.chunk_size"
)  # fmt: skip
_LONGEST_NAME = 1 << 12


@dataclass(frozen=True, kw_only=True)
class InputSquares:
    """What one tensor's products saw. sums: float32 [matrices, cols], of squares over tokens.

    counts: int64 [matrices], the tokens; none for an expert that was never chosen.
    """

    sums: Tensor
    counts: Tensor

    @staticmethod
    def of(mean: Tensor, counts: Tensor) -> InputSquares:
        """From mean squares [matrices, cols] and tokens [matrices]."""
        counts = counts.to(torch.int64)
        return InputSquares(sums=mean.float() * counts.float()[:, None], counts=counts)

    @property
    def mean(self) -> Tensor:
        """float32 [matrices, cols]; ones for a matrix without a token, as llama-quantize has it."""
        counts = self.counts.float()[:, None]
        return torch.where(counts > 0, self.sums / counts.clamp_min(1), torch.ones(()))


@dataclass(frozen=True, kw_only=True)
class Imatrix:
    """Entries by tensor name. chunks of chunk_size tokens were seen; datasets: what they are of."""

    entries: Mapping[str, InputSquares]
    chunks: int
    chunk_size: int = CHUNK
    datasets: tuple[str, ...] = ()

    def importance(self, name: str, matrices: int, cols: int) -> Tensor | None:
        """float32 [matrices, cols] for a tensor's columns; None where it has no entry.

        RequestError where the entry is of a tensor of another size.
        """
        entry = self.entries.get(name)
        if entry is None:
            return None
        if entry.sums.numel() != matrices * cols:
            raise RequestError(
                f"the importance matrix has {entry.sums.numel()} values for {name}, "
                f"which needs {matrices * cols}",
                hint="it was made for another model",
            )
        return entry.mean.reshape(matrices, cols)


def read_imatrix(path: Path) -> Imatrix:
    """Either form, told by its content. RequestError with one sentence for what is damaged."""
    try:
        with path.open("rb") as file:
            if file.read(len(MAGIC)) == MAGIC:
                return _from_gguf(read_gguf(path))
            file.seek(0)
            return _Legacy(path.name, file, os.fstat(file.fileno()).st_size).read()
    except OSError as error:
        raise RequestError(f"cannot read {path}: {error.strerror}") from error


def write_imatrix(path: Path, imatrix: Imatrix) -> None:
    """Write the older form where the name ends in .dat, else GGUF; whole or not at all.

    The older form has no entry for a tensor that saw no token, and names the last dataset alone.
    """
    if path.suffix == ".dat":
        _write_legacy(path, imatrix)
    else:
        _write_gguf(path, imatrix)


def _from_gguf(file: GgufFile) -> Imatrix:
    name, metadata = file.paths[0].name, file.metadata
    pairs: dict[str, dict[str, GgufTensor]] = {}
    for tensor in file.tensors.values():
        for suffix in (_SUMS, _COUNTS):
            if tensor.name.endswith(suffix):
                pairs.setdefault(tensor.name.removesuffix(suffix), {})[suffix] = tensor
    if not pairs:
        raise RequestError(f"{name} holds no importance matrix")
    stated = [metadata.get(key) for key in (_CHUNKS, _CHUNK_SIZE)]
    numbers = [number for number in stated if type(number) is int]
    datasets = metadata.get(_DATASETS, [])
    if len(numbers) < len(stated) or not isinstance(datasets, list):
        raise RequestError(f"{name} does not say what its importance matrix was made from")
    entries = {tensor: _entry(name, tensor, pair) for tensor, pair in pairs.items()}
    chunks, chunk_size = numbers
    names = tuple(str(dataset) for dataset in datasets if dataset)
    return Imatrix(entries=entries, chunks=chunks, chunk_size=chunk_size or CHUNK, datasets=names)


def _entry(file: str, name: str, pair: Mapping[str, GgufTensor]) -> InputSquares:
    if len(pair) < 2 or any(tensor.type_id != "F32" for tensor in pair.values()):
        raise RequestError(f"{file} lacks the sums or the counts of {name} in float32")
    sums, counts = (_read(pair[suffix]) for suffix in (_SUMS, _COUNTS))
    if sums.numel() % counts.numel() or not bool((counts < 1 << 53).all()):
        raise RequestError(f"{file} has counts for {name} that do not fit its sums")
    return _checked(file, name, sums.reshape(counts.numel(), -1), counts.round().to(torch.int64))


def _read(tensor: GgufTensor) -> Tensor:
    count = (tensor.end - tensor.start) // 4
    values = np.fromfile(tensor.file, dtype="<f4", count=count, offset=tensor.start)
    return torch.from_numpy(values)


def _checked(file: str, name: str, sums: Tensor, counts: Tensor) -> InputSquares:
    if not bool((sums.isfinite() & (sums >= 0)).all()) or bool((counts < 0).any()):
        raise RequestError(f"{file} has values for {name} that no squares sum up to")
    return InputSquares(sums=sums, counts=counts)


class _Legacy:
    """Reads the older form: for each tensor the mean squares times the chunks that it saw."""

    def __init__(self, name: str, file: BinaryIO, size: int) -> None:
        self._name, self._file, self._left = name, file, size

    def read(self) -> Imatrix:
        count = self._int()
        if not 0 < count <= self._left // 12:  # an entry has at least three numbers
            raise RequestError(f"{self._name} is no importance matrix")
        entries: dict[str, InputSquares] = {}
        for _ in range(count):
            name = self._text(self._int())
            if name in entries:
                raise RequestError(f"{self._name} holds {name} twice")
            entries[name] = self._entry(name)
        chunks = self._int() if self._left else 0  # files of the first tools end before
        dataset = self._text(self._int()) if self._left else ""
        return Imatrix(
            entries=entries, chunks=max(chunks, 0), datasets=(dataset,) if dataset else ()
        )

    def _entry(self, name: str) -> InputSquares:
        chunks, length = self._int(), self._int()
        if length < 1:
            raise RequestError(f"{self._name} claims {length} values for {name}")
        values = torch.frombuffer(bytearray(self._take(4 * length)), dtype=torch.float32)
        tokens = chunks * CHUNK if chunks > 0 else 1  # sums are means where chunks are unknown
        counts = torch.tensor([tokens], dtype=torch.int64)
        return _checked(self._name, name, (values * (CHUNK if chunks > 0 else 1))[None], counts)

    def _int(self) -> int:
        (value,) = struct.unpack("<i", self._take(4))
        return int(value)

    def _text(self, length: int) -> str:
        if not 0 <= length <= _LONGEST_NAME:
            raise RequestError(f"{self._name} claims a name of {length} bytes")
        try:
            return self._take(length).decode("utf-8")
        except UnicodeDecodeError:
            raise RequestError(f"{self._name} has a name that is not UTF-8 text") from None

    def _take(self, count: int) -> bytes:
        if count > self._left:
            raise RequestError(f"{self._name} is truncated")
        self._left -= count
        return self._file.read(count)


def _write_gguf(path: Path, imatrix: Imatrix) -> None:
    metadata = {
        "general.type": IMATRIX,
        _DATASETS: list(imatrix.datasets) or [""],  # llama-quantize wants the key
        _CHUNKS: imatrix.chunks,
        _CHUNK_SIZE: imatrix.chunk_size,
    }
    tensors = []
    for name, entry in sorted(imatrix.entries.items()):
        for suffix, values in ((_SUMS, entry.sums), (_COUNTS, entry.counts.float()[:, None])):
            shape = tuple(values.shape) if len(values) > 1 else (values.shape[1],)
            tensors.append(TensorEntry(name + suffix, "F32", shape, _Bytes(values)))
    write_gguf(path, metadata, tensors)


@dataclass(frozen=True)
class _Bytes:
    """A tensor's bytes, when they are asked for."""

    values: Tensor

    def __call__(self) -> Iterator[bytes]:
        yield self.values.contiguous().cpu().numpy().astype("<f4").tobytes()


def _write_legacy(path: Path, imatrix: Imatrix) -> None:
    seen = {n: e for n, e in sorted(imatrix.entries.items()) if bool((e.counts > 0).any())}
    if not seen:
        raise LlmoptError(f"{path.name} would hold no entry: no tensor saw a token")
    partial = path.with_name(path.name + ".partial")
    with partial.open("wb") as file:
        file.write(struct.pack("<i", len(seen)))
        for name, entry in seen.items():
            chunks = -(-int(entry.counts.max()) // imatrix.chunk_size)
            values = (entry.mean * chunks).cpu().numpy().astype("<f4")
            file.write(_packed(name) + struct.pack("<ii", chunks, values.size) + values.tobytes())
        dataset = imatrix.datasets[-1] if imatrix.datasets else ""
        file.write(struct.pack("<i", imatrix.chunks) + _packed(dataset))
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)


def _packed(text: str) -> bytes:
    raw = text.encode()
    return struct.pack("<i", len(raw)) + raw
