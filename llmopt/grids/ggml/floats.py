"""ggml's blocks of 4-bit floats (E2M1): MXFP4, NVFP4.

Levels are twice the E2M1 values, whole numbers, and scales half of what E8M0 or UE4M3 say.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from llmopt.grids.ggml.base import Fields, ScalarGrid
from llmopt.grids.ggml.bits import pack_bits, unpack_bits
from llmopt.grids.ggml.refine import Moments, State
from llmopt.grids.ggml.scalar import Batch, ScalarBlocks

_MAGNITUDES = (0.0, 1.0, 2.0, 3.0, 4.0, 6.0, 8.0, 12.0)
_LEVELS = torch.tensor([-value for value in _MAGNITUDES[:0:-1]] + list(_MAGNITUDES))
# Of each index of _LEVELS, the four stored bits: sign, then the index of the magnitude.
_STORED = torch.tensor([15, 14, 13, 12, 11, 10, 9, 0, 1, 2, 3, 4, 5, 6, 7], dtype=torch.uint8)
_READ = torch.tensor([*_MAGNITUDES, *(-value for value in _MAGNITUDES)])


class Floats(ScalarBlocks):
    """value = scale(byte) * level; the field "scales" holds the bytes, [n, s]."""

    low, high, table, distinct = -12, 12, _LEVELS, 2
    #: the scale of every byte, ascending up to `last`
    scales: Tensor
    last: int
    #: weights between the two nibbles of a byte
    run: int
    #: changes of scale bytes that a search tries first
    steps: tuple[int, ...]

    @abstractmethod
    def first(self, largest: Tensor) -> Tensor:
        """The scale bytes that ggml takes for sub-blocks of this largest magnitude."""

    def upstream(self, part: Batch) -> tuple[State, Tensor]:
        x = part.x
        magnitudes = x.abs()
        state = {"scales": self.first(magnitudes.amax(0))}
        scale, _ = self.spread(state)
        level, error = torch.zeros_like(x), magnitudes.clone()
        for value in _MAGNITUDES[1:]:  # a smaller magnitude wins a tie, after rounding
            found = (scale * value - magnitudes).abs_()
            better = found < error
            level, error = level.masked_fill_(better, value), torch.where(better, found, error)
        return state, torch.where(x < 0, -level, level)

    def spread(self, state: State) -> tuple[Tensor, Tensor | None]:
        return self.scales.to(state["scales"].device)[state["scales"].to(torch.int64)], None

    def moves(self, state: State, turn: int) -> Iterator[Callable[[State], State]]:
        start = state["scales"]
        for step in self.steps if turn == 0 else (1, -1):
            yield lambda _, by=step: {"scales": (start + by).clamp_(0, self.last)}  # type: ignore[misc]

    def settle(self, moments: Moments, state: State | None) -> State:  # noqa: ARG002
        """The byte whose scale is nearest to the best one: the error is a parabola in the scale."""
        table = self.scales[: self.last + 1].to(moments.w.device)
        fitted = torch.where(moments.qq > 0, moments.xq / moments.qq, 0.0)
        found = torch.bucketize(fitted, (table[1:] + table[:-1]) / 2)
        return {"scales": found.to(torch.float32)}

    def pack(self, fields: Fields, codes: Tensor) -> Tensor:
        stored = _STORED.to(codes.device)[codes.to(torch.int64)]
        return torch.cat([fields["scales"].to(torch.uint8), pack_bits(stored, 4, self.run)], 1)

    def unpack(self, data: Tensor) -> tuple[Fields, Tensor]:
        count = self.width // self.sub
        stored = unpack_bits(data[:, count:], 4, self.run).to(torch.int64)
        return {"scales": data[:, :count].to(torch.float32)}, _READ.to(data.device)[stored]


class Mxfp4(Floats):
    """32 weights with a power of two: whatever float32 holds."""

    largest = math.inf
    sub, run, last, steps = 32, 16, 254, (1, -1, 2)
    scales = torch.tensor([2.0 ** (byte - 128) for byte in range(256)], dtype=torch.float32)

    def first(self, largest: Tensor) -> Tensor:
        exponent = largest.double().log2().float().floor() - 2 + 127
        return torch.where(largest > 0, exponent.clamp_(0, 255), 0.0)


def _ue4m3() -> Tensor:
    """Half the value of every byte as an unsigned float of four and three bits."""
    byte = torch.arange(256)
    exponent, mantissa = (byte >> 3) & 15, (byte & 7).to(torch.float32)
    normal = (1 + mantissa / 8) * torch.exp2((exponent - 8).to(torch.float32))
    values = torch.where(exponent == 0, mantissa / 1024, normal)
    return values.masked_fill_((byte == 127) | (byte == 0), 0.0)


class Nvfp4(Floats):
    """64 weights, each 16 with a scale of their own, up to 448 times the largest value, 6."""

    sub, run, last, largest = 16, 8, 126, 448.0 * 6
    steps = tuple(sign * size for size in range(1, 9) for sign in (1, -1))
    scales = _ue4m3()

    def first(self, largest: Tensor) -> Tensor:
        """The float's top bits, rounded half up; subnormals in steps of 1 / 512."""
        target = torch.div(largest, torch.tensor(6.0)).clamp_(max=448.0)
        bits = target.contiguous().view(torch.int32)
        normal = ((bits >> 20) + ((bits >> 19) & 1) - ((127 - 7) << 3)).clamp_(max=126)
        small = (target * 512 + 0.5).trunc_().clamp_(max=7)
        return torch.where((bits >> 23) - 127 + 7 <= 0, small, normal.to(torch.float32))


GRIDS: dict[str, ScalarGrid] = {"MXFP4": Mxfp4("MXFP4"), "NVFP4": Nvfp4("NVFP4")}
