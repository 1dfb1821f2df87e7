"""ggml's own encoder of the IQ2 and IQ3 types, number for number.

Every sum runs in the order of the index and every operation rounds to float32, as in ggml's code.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import embedding

from llmopt.grids.ggml.neighbours import Neighbours, neighbours, running_sum
from llmopt.grids.ggml.upstream import LANES, positive, root

__all__ = ["Encoder", "Rounded"]

_BITS = torch.arange(8)


@dataclass(frozen=True, kw_only=True)
class Rounded:
    """What the encoder stores of n blocks: d [n], the float32 scale; stretch times it is stored.

    l: int64 [n, k]. signs: int64 [n, width / 8], 8 bits each. entries: int64 [n, width / dim].
    empty: bool [n, k], parts that were taken for zero.
    """

    d: Tensor
    l: Tensor  # noqa: E741 - ggml's name
    signs: Tensor
    entries: Tensor
    empty: Tensor


@dataclass(frozen=True, kw_only=True)
class Encoder:
    """What is particular to a type.

    part: weights that share a scale. even: the minuses of 8 weights must be even in number.
    shells: of neighbours. reach, step: scales are tried at -reach * step ... reach * step around
    the one at which the largest magnitude has the highest level. spread: what the mean square of a
    block counts in the weights. floor: the same where there is no importance matrix. nothing: parts
    of no larger magnitude are zero. stretch: what d is multiplied by in the end. again: whether the
    last rounding is for all vectors of a part, or for those alone that the codebook did not have.
    fitted: the tries are around a scale that was fitted to the part.
    """

    type_id: str
    part: int
    even: bool
    shells: int
    reach: int
    step: float
    spread: float
    floor: float
    nothing: float
    stretch: float
    again: bool
    fitted: bool = False

    @property
    def search(self) -> Neighbours:
        return neighbours(self.type_id, self.shells, odd=True)

    @property
    def top(self) -> int:
        """The highest level in the lattice 1, 3, 5, ... ."""
        return 2 * self.search.book.base - 1

    def round(self, x: Tensor, importance: Tensor | None) -> Rounded:
        """Encode blocks x float32 [n, width]; importance the same shape."""
        n = len(x)
        weight = self._weight(x, importance).view(-1, self.part)
        minus, a = self._signs(x.reshape(-1, self.part), weight)
        empty = a.amax(1) <= self.nothing
        scale, entries = self._scales(a, weight)
        scale = scale.masked_fill(empty, 0.0)
        flipped = (scale < 0)[:, None]
        scale, minus = scale.abs(), minus ^ flipped
        empty = empty | (scale == 0)
        signs = (minus.view(len(a), -1, 8) << _BITS).sum(2).masked_fill(empty[:, None], 0)
        entries = entries.masked_fill(empty[:, None], 0)
        largest = scale.view(n, -1).amax(1)
        d = largest / 31
        inverse = torch.where(d > 0, 1 / d, 0.0)
        level = (0.5 * (inverse[:, None] * scale.view(n, -1) - 1)).round().clamp(0, 15)
        return Rounded(
            d=d * torch.tensor(self.stretch),
            l=level.long(),
            signs=signs.view(n, -1),
            entries=entries.view(n, -1),
            empty=empty.view(n, -1),
        )

    def _weight(self, x: Tensor, importance: Tensor | None) -> Tensor:
        square = x * x
        mean = running_sum(square)[:, None] * (self.spread / x.shape[1])
        if importance is None:
            return self.floor * mean + square
        return importance * root(mean + square)

    def _signs(self, x: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
        """Which weights are minus, and their magnitudes, below zero where a sign was turned."""
        minus, a = x < 0, x.abs()
        if self.even:
            loss = (weight * x * x).view(-1, 8)
            odd = minus.view(-1, 8).sum(1) % 2 == 1
            turn = (loss.argmin(1)[:, None] == _BITS) & odd[:, None]
            turn = turn.view(x.shape)
            minus, a = minus ^ turn, torch.where(turn, -a, a)
        return minus, a

    def _scales(self, a: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
        """The scale of each part and the entries of its vectors."""
        first = a.amax(1)
        if self.fitted:
            first = _positive_scale(a, weight, self.search.book.base + 1) * self.search.book.base
        scale = first / self.top
        dim = self.search.levels.shape[1]
        entries = self.search.entry[:1].expand(len(a), self.part // dim)
        found = torch.full_like(entries, not self.again, dtype=torch.bool)
        best = torch.zeros_like(first)
        roots = root(weight)
        for count in range(-self.reach, self.reach + 1):
            inverse = (torch.tensor(self.step) * count + self.top) / first
            tried, have = self._entries(a, roots, inverse, 1 / inverse)
            linear, square = self._sums(a, weight, tried)
            better = (square > 0) & (linear * linear > best * square)
            scale = torch.where(better, linear / square, scale)
            best = torch.where(better, scale * linear, best)
            entries = torch.where(better[:, None], tried, entries)
            found = torch.where(better[:, None], have, found)
        return self._last(a, weight, scale, entries, found)

    def _last(
        self, a: Tensor, weight: Tensor, scale: Tensor, entries: Tensor, found: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Rounds once more at the fitted scale, and fits it to what comes out."""
        redo = (scale > 0) & (True if self.fitted else ~found.all(1))
        tried, _ = self._entries(a, root(weight), 1 / scale, scale)
        change = redo[:, None] if self.again else redo[:, None] & ~found
        entries = torch.where(change, tried, entries)
        linear, square = self._sums(a, weight, entries)
        return torch.where(redo & (square > 0), linear / square, scale), entries

    def _entries(
        self, a: Tensor, roots: Tensor, inverse: Tensor, scale: Tensor
    ) -> tuple[Tensor, Tensor]:
        book = self.search.book
        dim = book.places.shape[1]
        places = (0.5 * (inverse[:, None] * a - 1)).round().clamp(0, book.base - 1)
        places = places.nan_to_num(0.0).long().view(-1, dim)
        repeated = scale.repeat_interleave(self.part // dim)
        entries, found = self.search.entries(places, a.view(-1, dim), roots.view(-1, dim), repeated)
        return entries.view(len(a), -1), found.view(len(a), -1)

    def _sums(self, a: Tensor, weight: Tensor, entries: Tensor) -> tuple[Tensor, Tensor]:
        level = embedding(entries, self.search.levels).flatten(1)
        return running_sum(weight * a * level), running_sum(weight * level * level)


def _positive_scale(a: Tensor, weight: Tensor, top: int) -> Tensor:
    """upstream.positive for parts [m, part]."""
    pad = -len(a) % LANES
    columns = torch.nn.functional.pad(a.T, (0, pad)).contiguous()
    weights = torch.nn.functional.pad(weight.T, (0, pad)).contiguous()
    return positive(columns, weights, top)[0][: len(a)]
