"""What the IQ types share: a weight cut into blocks and back, and a few conversions of numbers."""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor

from llmopt.grids.ggml.base import LARGEST, Fields, Search
from llmopt.grids.ggml.weighing import natural
from llmopt.specs.ggml import GGML_TYPES

__all__ = ["SuperBlocks", "join_bytes", "nibbles", "pairs", "split_bytes"]

#: weights that are encoded at a time: bounds the memory that a search takes
_CHUNK = 1 << 18


class SuperBlocks(ABC):
    """Encoding and decoding of one type by blocks [n, width]."""

    on_cpu, largest = True, LARGEST

    def __init__(self, type_id: str) -> None:
        self.type_id = type_id
        self.spec = GGML_TYPES[type_id]
        self.width = self.spec.block

    @abstractmethod
    def reference(self, x: Tensor, importance: Tensor | None) -> tuple[Fields, Tensor]:
        """Fields and codes that ggml's encoder gives blocks x float32 [n, width]."""

    @abstractmethod
    def best(self, x: Tensor, importance: Tensor) -> tuple[Fields, Tensor]:
        """Fields and codes that lose little, weighed by importance [n, width] > 0."""

    @abstractmethod
    def pack(self, fields: Fields, codes: Tensor) -> Tensor:
        """uint8 [n, nbytes]."""

    @abstractmethod
    def decode_blocks(self, data: Tensor) -> Tensor:
        """float32 [n, width] of uint8 [n, nbytes]."""

    def encode(self, w: Tensor, importance: Tensor | None, search: Search) -> Tensor:
        """As BlockGrid.encode."""
        blocks = w.reshape(-1, self.width)
        out = torch.empty(len(blocks), self.spec.nbytes, dtype=torch.uint8)
        of_row = w.shape[1] // self.width
        step = max(1, _CHUNK // self.width)
        for start in range(0, len(blocks), step):
            x = blocks[start : start + step]
            place = torch.arange(start, start + len(x)) % of_row
            out[start : start + step] = self._encode(x, importance, place, search)
        return out.view(len(w), -1)

    def _encode(
        self, x: Tensor, importance: Tensor | None, place: Tensor, search: Search
    ) -> Tensor:
        weight = None if importance is None else importance.view(-1, self.width)[place]
        if search == "reference":
            return self.pack(*self.reference(x, weight))
        return self.pack(*self.best(x, _positive(natural(x, 1)) if weight is None else weight))

    def decode(self, data: Tensor) -> Tensor:
        """As BlockGrid.decode."""
        return self.decode_blocks(data.reshape(-1, self.spec.nbytes)).view(len(data), -1)


def _positive(weight: Tensor) -> Tensor:
    """Weights [n, width] of errors without zeros, which blocks of zeros have."""
    return torch.where(weight.amax(1, keepdim=True) > 0, weight, 1.0).clamp_min(1e-20)


def pairs(low: Tensor, high: Tensor) -> Tensor:
    """Two numbers below 16 as a byte."""
    return (low | high << 4).to(torch.uint8)


def nibbles(data: Tensor) -> tuple[Tensor, Tensor]:
    """The low and the high halves of bytes, int64."""
    wide = data.long()
    return wide & 15, wide >> 4


def split_bytes(words: Tensor, count: int) -> Tensor:
    """Bytes int64 [n, k * count] of words int64 [n, k], the lowest first."""
    return (words[:, :, None] >> 8 * torch.arange(count) & 255).flatten(1)


def join_bytes(data: Tensor) -> Tensor:
    """Words int64 [n, k] of bytes int64 [n, k, count]."""
    return (data << 8 * torch.arange(data.shape[2])).sum(2)
