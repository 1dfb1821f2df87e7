"""Where hidden states lie between blocks: in memory, or in files that are read a batch at a time.

Files are read and written with plain calls, not mapped, so that what a process holds of them is one
batch. They are a walk's scratch: what a killed walk goes on from is `state.WalkState`'s.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol, TypeAlias

import torch
from torch import Tensor

#: sequences start to stop
Batch: TypeAlias = "slice[int, int, int]"
#: what the names of such files end in
SCRATCH = ".scratch"


class Activations(Protocol):
    """[sequences, length, width], read and overwritten some sequences at a time; a Tensor is one.

    What a slice gives may be a view or a copy: it is changed by assigning to the slice.
    """

    @property
    def shape(self) -> torch.Size: ...

    @property
    def dtype(self) -> torch.dtype: ...

    def __getitem__(self, rows: Batch, /) -> Tensor: ...

    def __setitem__(self, rows: Batch, value: Tensor, /) -> None: ...


class FileActivations:
    """Activations in a file of their own, which is made, or made anew, with arbitrary values."""

    def __init__(self, path: Path, shape: Sequence[int], dtype: torch.dtype) -> None:
        self.path, self.shape, self.dtype = path, torch.Size(shape), dtype
        self._row_bytes = self.shape[1:].numel() * dtype.itemsize
        with path.open("wb") as file:
            file.truncate(self.shape[0] * self._row_bytes)

    def __getitem__(self, rows: Batch, /) -> Tensor:
        start, stop, _ = rows.indices(self.shape[0])
        value = torch.empty(stop - start, *self.shape[1:], dtype=self.dtype)
        view = _bytes(value)
        with self.path.open("rb", buffering=0) as file:
            file.seek(start * self._row_bytes)
            while view:
                count = file.readinto(view)
                if not count:
                    raise OSError(f"{self.path} ended early")
                view = view[count:]
        return value

    def __setitem__(self, rows: Batch, value: Tensor, /) -> None:
        start, stop, _ = rows.indices(self.shape[0])
        value = value.detach().to("cpu", self.dtype).expand(stop - start, *self.shape[1:])
        view = _bytes(value.contiguous())
        with self.path.open("r+b", buffering=0) as file:
            file.seek(start * self._row_bytes)
            while view:
                view = view[file.write(view) :]

    def remove(self) -> None:
        """Give the disk back."""
        self.path.unlink(missing_ok=True)


class Room:
    """Makes activations: in memory, or in files of `folder` where one is given."""

    def __init__(self, folder: Path | None = None) -> None:
        self._folder = folder

    def make(self, name: str, shape: Sequence[int], dtype: torch.dtype) -> Activations:
        """Activations with arbitrary values; `name` is that of the file, and of one at a time."""
        if self._folder is None:
            return torch.empty(*shape, dtype=dtype)
        return FileActivations(self._folder / f"{name}{SCRATCH}", shape, dtype)

    def give_back(self, activations: Activations) -> None:
        """What was made is not read again: a file is removed."""
        if isinstance(activations, FileActivations):
            activations.remove()


def _bytes(value: Tensor) -> memoryview:
    return value.reshape(-1).view(torch.uint8).numpy().data
