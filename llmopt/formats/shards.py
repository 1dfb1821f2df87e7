"""Checkpoints that are written a part at a time: what a killed run keeps, and shards in the end."""

from __future__ import annotations

import json
import math
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import BinaryIO

from torch import Tensor

from llmopt.errors import LlmoptError
from llmopt.formats import headers
from llmopt.formats.headers import INDEX, SHARD_BYTES, WEIGHTS
from llmopt.formats.safetensors import (
    DTYPE_NAMES,
    appearing,
    header_bytes,
    natural_key,
    read_tensor,
    to_disk,
    torch_dtype,
    write_file,
    write_tensor,
)
from llmopt.formats.safetensors_header import read_file_headers
from llmopt.formats.tensor_header import TensorHeader

_COPY_BYTES = 8 << 20
_PART_SUFFIX = ".safetensors"
_METADATA = {"format": "pt"}
#: where a tensor's bytes lie: in one place, or its matrices one after the other
Pieces = tuple[TensorHeader, ...]
#: by name, in natural order
Tensors = Mapping[str, Pieces]


class ShardWriter:
    """Collects tensors in part files as they are finished, then lays them out as a checkpoint.

    A part is a safetensors file in `folder` that appears at once and complete, after a file with
    what is noted of it, so a killed run keeps all that it finished. Tensors that do not change are
    not written into parts: `keep` notes where they lie, and `finalize` copies their bytes.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._kept: dict[str, TensorHeader] = {}
        self._stacks: Mapping[str, Sequence[str]] = {}
        folder.mkdir(parents=True, exist_ok=True)

    def parts(self) -> list[str]:
        """Names of the finished parts, in natural order."""
        names = (path.name.removesuffix(_PART_SUFFIX) for path in self._files())
        return sorted(names, key=natural_key)

    def write(self, part: str, tensors: Mapping[str, Tensor], note: str = "") -> None:
        """Finish a part; `note` is text that `read_note` gives back."""
        with appearing(self._note(part)) as file:
            file.write(note.encode())
        write_file(self._path(part), tensors, _METADATA)

    def headers(self, part: str) -> dict[str, TensorHeader]:
        """The tensors of a finished part."""
        return read_file_headers(self._path(part))

    def read_note(self, part: str) -> str:
        """The note that came with a finished part."""
        return self._note(part).read_text("utf-8")

    def keep(self, name: str, header: TensorHeader) -> None:
        """Put a stored tensor into the result unchanged, as `name`."""
        if name in self._kept:
            raise LlmoptError(f"tensor {name} was given to the writer twice")
        self._kept[name] = header

    def clear(self) -> None:
        """Forget everything that was written or kept."""
        self._kept.clear()
        for path in self._folder.iterdir():
            path.unlink()

    def finalize(
        self,
        folder: Path,
        max_shard_bytes: int = SHARD_BYTES,
        stacks: Mapping[str, Sequence[str]] | None = None,
    ) -> list[str]:
        """Write the checkpoint into `folder`; returns the names of the files, in order.

        stacks: tensors of [matrices, ...], and the matrices that they hold where all are there.

        What fits is one file. Else large parts become shards as they are, by hard links, and the
        other tensors are dealt to shards in natural order of their names. Within a shard the widest
        dtypes come first, so that each tensor is aligned. The same parts give the same bytes.
        """
        self._stacks = stacks or {}
        tensors = _stacked(self._collect(), self._stacks)
        if sum(map(_size, tensors.values())) <= max_shard_bytes:
            _copy_shard(folder / WEIGHTS, tensors)
            return [WEIGHTS]
        shards = self._shards(tensors, max_shard_bytes)
        names = [f"model-{i + 1:05d}-of-{len(shards):05d}.safetensors" for i in range(len(shards))]
        placed: dict[str, str] = {}
        for name, (part, held) in zip(names, shards, strict=True):
            placed |= dict.fromkeys(held, name)
            if part is None:
                _copy_shard(folder / name, held)
            else:
                _link(part, folder / name)
        index = {
            "metadata": {"total_size": sum(map(_size, tensors.values()))},
            "weight_map": {tensor: placed[tensor] for tensor in tensors},
        }
        (folder / INDEX).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")
        return [*names, INDEX]

    def _shards(self, tensors: Tensors, max_shard_bytes: int) -> list[tuple[Path | None, Tensors]]:
        """Each shard's tensors, and the part that is the shard already, in order of names."""
        large: dict[Path, dict[str, Pieces]] = {
            path: {}
            for path in self._files()
            if headers.LARGE_PART <= path.stat().st_size <= max_shard_bytes
        }
        for name, pieces in tensors.items():
            if name in self._stacks:  # a part of theirs is no shard as it is
                for piece in pieces:
                    large.pop(piece.file, None)
        rest: dict[str, Pieces] = {}
        for name, pieces in tensors.items():
            large.get(pieces[0].file, rest)[name] = pieces
        found: list[tuple[Path | None, Tensors]] = [*large.items()]
        found += [(None, shard) for shard in _deal(rest, max_shard_bytes) if shard]
        return sorted(found, key=lambda shard: natural_key(next(iter(shard[1]))))

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

    def _files(self) -> Iterator[Path]:
        """Finished parts: those of an earlier version, which had their notes inside, are none."""
        for path in self._folder.glob("*" + _PART_SUFFIX):
            if self._note(path.name.removesuffix(_PART_SUFFIX)).is_file():
                yield path

    def _path(self, part: str) -> Path:
        return self._folder / (part + _PART_SUFFIX)

    def _note(self, part: str) -> Path:
        return self._folder / f"{part}.note"


def _stacked(
    tensors: Mapping[str, TensorHeader], stacks: Mapping[str, Sequence[str]]
) -> dict[str, Pieces]:
    """The tensors with those that are matrices of a stack in it."""
    found: dict[str, Pieces] = {name: (header,) for name, header in tensors.items()}
    for stack, parts in stacks.items():
        if tensors.keys() >= set(parts):
            pieces = [found.pop(part)[0] for part in parts]
            shape = (len(pieces), *pieces[0].shape)
            found[stack] = (replace(pieces[0], stored_shape=shape), *pieces[1:])
    return {name: found[name] for name in sorted(found, key=natural_key)}


def _deal(tensors: Tensors, max_shard_bytes: int) -> list[dict[str, Pieces]]:
    shards: list[dict[str, Pieces]] = [{}]
    size = 0
    for name, pieces in tensors.items():
        if shards[-1] and size + _size(pieces) > max_shard_bytes:
            shards.append({})
            size = 0
        shards[-1][name] = pieces
        size += _size(pieces)
    return shards


def _copy_shard(path: Path, tensors: Tensors) -> None:
    layout = []
    for name, pieces in tensors.items():
        first = pieces[0]
        shape = first.stored_shape or first.shape
        layout.append((name, DTYPE_NAMES[torch_dtype(first)], shape, _size(pieces)))
    order, text = header_bytes(layout, _METADATA)
    with path.open("wb") as file:
        file.write(text)
        for name in order:
            for piece in tensors[name]:
                if piece.plain:
                    _copy_range(piece, file)
                else:
                    write_tensor(read_tensor(piece), file)
        to_disk(file)


def _size(pieces: Pieces) -> int:
    """Bytes of a tensor in our files."""
    return sum(
        piece.nbytes if piece.plain else math.prod(piece.shape) * torch_dtype(piece).itemsize
        for piece in pieces
    )


def _link(part: Path, shard: Path) -> None:
    """Give a part another name; a copy where the file system has no hard links."""
    shard.unlink(missing_ok=True)
    try:
        os.link(part, shard)
    except OSError:
        shutil.copyfile(part, shard)


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
