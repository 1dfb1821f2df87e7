"""IQ4_NL and IQ4_XS: a code is one of 16 unevenly spaced levels.

IQ4_NL has a float16 scale for every 32 weights. IQ4_XS has one for 256, and for each 32 of them a
multiplier from -32 to 31.
"""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor

from llmopt.grids.ggml.base import BlockLattice, Fields, ScalarGrid
from llmopt.grids.ggml.bits import half_bytes, read_half, to_half
from llmopt.grids.ggml.neighbours import running_sum
from llmopt.grids.ggml.scaled import Space, fit_scales, search
from llmopt.grids.ggml.superblock import SuperBlocks, nibbles, pairs
from llmopt.grids.ggml.upstream import root

__all__ = ["GRIDS"]

_PART = 32
#: parts below this magnitude are zero to ggml's encoder
_NOTHING = 1e-15
#: what the reference search adds to the lowest level, which the largest magnitude is to meet
_TRIES = range(-7, 8)
#: for the best search: levels that the largest magnitude is to meet, either sign
_STARTS = torch.tensor([*range(-141, -110, 5), *range(96, 134, 6)], dtype=torch.float32)


@lru_cache
def _levels() -> Tensor:
    """The 16 levels, float32, ascending."""
    from gguf.quants import IQ4_NL

    return torch.tensor(IQ4_NL.kvalues, dtype=torch.float32)


def _nearest_level(x: Tensor) -> Tensor:
    levels = _levels()
    return torch.bucketize(x, (levels[1:] + levels[:-1]) / 2, right=True)


def _nearest(x: Tensor, weight: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:  # noqa: ARG001
    inverse = torch.where(scale == 0, 0.0, 1 / scale)
    codes = _nearest_level(x * inverse[:, None])
    return codes, _levels()[codes]


class _Table(SuperBlocks):
    """multipliers: what a part's number stands for; one number alone is not stored."""

    def __init__(self, type_id: str, multipliers: Tensor) -> None:
        super().__init__(type_id)
        self.multipliers = multipliers

    def _parts(self, x: Tensor) -> Tensor:
        return x.reshape(len(x), -1, _PART)

    def _scale(self, fields: Fields) -> Tensor:
        return fields["d"][:, None] * self.multipliers[fields["l"]]

    def best(self, x: Tensor, importance: Tensor) -> tuple[Fields, Tensor]:
        """As in SuperBlocks."""
        space = Space(multipliers=self.multipliers, levels=_levels(), starts=_STARTS)
        found = search(self._parts(x), self._parts(importance), _nearest, space)
        return {"d": found.d, "l": found.l}, found.codes.flatten(1)

    def fit(self, blocks: Tensor, importance: Tensor) -> Fields:
        """As in ScalarGrid."""
        return self.best(blocks, importance.expand_as(blocks))[0]

    def refit(self, blocks: Tensor, codes: Tensor, importance: Tensor) -> Fields:
        """As in ScalarGrid."""
        x, weight = self._parts(blocks), self._parts(importance.expand_as(blocks))
        units = self._parts(_levels()[codes.long()])
        d, l = fit_scales(x, weight, units, self.multipliers)  # noqa: E741
        return {"d": d, "l": l}

    def lattice(self, fields: Fields) -> BlockLattice:
        """As in ScalarGrid."""
        scale = self._scale(fields).repeat_interleave(_PART, 1)
        return BlockLattice(scale=scale, offset=torch.zeros_like(scale), top=15, levels=_levels())

    def reference(self, x: Tensor, importance: Tensor | None) -> tuple[Fields, Tensor]:
        """As in SuperBlocks."""
        square = x * x
        if importance is None:
            weight = square
        else:
            spread = running_sum(square) * (2 / self.width)
            weight = importance * root(spread[:, None] + square)
        s = _reference_scale(x.reshape(-1, _PART), weight.reshape(-1, _PART)).view(len(x), -1)
        if len(self.multipliers) == 1:
            fields = {"d": to_half(s[:, 0]), "l": torch.zeros_like(s, dtype=torch.long)}
            return fields, _nearest(x, x, s[:, 0])[0]
        d = s.gather(1, s.abs().argmax(1, keepdim=True)) / -32
        multiplier = torch.where(d == 0, 0.0, s * (1 / d)).round().clamp(-32, 31)
        codes, _ = _nearest(x.reshape(-1, _PART), x, (d * multiplier).view(-1))
        fields = {"d": to_half(d[:, 0]), "l": (multiplier + 32).long()}
        return fields, codes.view(x.shape)


def _reference_scale(x: Tensor, weight: Tensor) -> Tensor:
    """ggml's scale of each part [m, 32], signed."""
    top = x.gather(1, x.abs().argmax(1, keepdim=True))
    lowest = float(_levels()[0])

    def sums(inverse: Tensor) -> tuple[Tensor, Tensor]:
        level = _levels()[_nearest_level(inverse * x)]
        weighed = weight * level
        return running_sum(weighed * x), running_sum(weighed * level)

    linear, square = sums(1 / (-top / lowest))
    scale = torch.where(square > 0, linear / square, 0.0)
    best = scale * linear
    for step in _TRIES:
        linear, square = sums(torch.tensor(step + lowest) / top)
        better = (square > 0) & (linear * linear > best * square)
        scale = torch.where(better, linear / square, scale)
        best = torch.where(better, scale * linear, best)
    return torch.where(top[:, 0].abs() < _NOTHING, 0.0, scale)


def _code_bytes(codes: Tensor) -> Tensor:
    """[n, width] codes: of each 32, the first 16 are the low halves of 16 bytes."""
    low, high = codes.view(len(codes), -1, 2, 16).unbind(2)
    return pairs(low, high).flatten(1)


def _codes_of(data: Tensor) -> Tensor:
    return torch.stack(nibbles(data.reshape(len(data), -1, 16)), 2).flatten(1)


class _Iq4Nl(_Table):
    def pack(self, fields: Fields, codes: Tensor) -> Tensor:
        """As in ScalarGrid."""
        return torch.cat([half_bytes(fields["d"], self.spec.id), _code_bytes(codes)], 1)

    def decode_blocks(self, data: Tensor) -> Tensor:
        """As in SuperBlocks."""
        return read_half(data, 0)[:, None] * _levels()[_codes_of(data[:, 2:])]


class _Iq4Xs(_Table):
    def pack(self, fields: Fields, codes: Tensor) -> Tensor:
        """As in ScalarGrid."""
        level = fields["l"]
        high = ((level >> 4) << 2 * torch.arange(8)).sum(1)
        high_bytes = torch.stack([high & 255, high >> 8], 1).to(torch.uint8)
        low = pairs(*(level & 15).view(-1, 4, 2).unbind(2))
        return torch.cat(
            [half_bytes(fields["d"], self.spec.id), high_bytes, low, _code_bytes(codes)], 1
        )

    def decode_blocks(self, data: Tensor) -> Tensor:
        """As in SuperBlocks."""
        high = data[:, 2].long() | data[:, 3].long() << 8
        low = torch.stack(nibbles(data[:, 4:8]), 2).flatten(1)
        level = low | (high[:, None] >> 2 * torch.arange(8) & 3) << 4
        fields = {"d": read_half(data, 0), "l": level}
        scale = self._scale(fields).repeat_interleave(_PART, 1)
        return scale * _levels()[_codes_of(data[:, 8:])]


GRIDS: dict[str, ScalarGrid] = {
    "IQ4_NL": _Iq4Nl("IQ4_NL", torch.ones(1)),
    "IQ4_XS": _Iq4Xs("IQ4_XS", torch.arange(-32.0, 32.0)),
}
