"""ggml's own encoder of the IQ1 types, number for number.

The weights of a part are sorted and cut in three: minus one, zero, plus one, each moved up or down
by an eighth. The scale of every cut and shift follows from sums over what lies below; the best is
rounded to the codebook. Sums run in the order of ggml's code, in float32.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from llmopt.grids.ggml.neighbours import Neighbours, neighbours, running_sum
from llmopt.grids.ggml.upstream import root

__all__ = ["SHIFT", "Split", "Splitter"]

#: what the levels -1, 0, 1 are moved by
SHIFT = 0.125
_SHELLS = 3
_LOWEST = -3.4028234663852886e38


@dataclass(frozen=True, kw_only=True)
class Split:
    """What was found for m parts: scale [m], down int64 [m, groups], 1 where levels are moved down,
    and entries int64 [m, part / 8]."""

    scale: Tensor
    down: Tensor
    entries: Tensor


@dataclass(frozen=True, kw_only=True)
class Splitter:
    """What is particular to a type.

    part: weights that share a scale. groups: of a part, each with a shift of its own. nothing:
    parts of no larger magnitude are zero.
    """

    type_id: str
    part: int
    groups: int
    nothing: float

    @property
    def search(self) -> Neighbours:
        return neighbours(self.type_id, _SHELLS, odd=False)

    def weight(self, x: Tensor, importance: Tensor | None) -> Tensor:
        """What weighs the errors of blocks x [n, width]."""
        square = x * x
        if importance is None:
            return square
        return importance * root(running_sum(square)[:, None] * (2 / x.shape[1]) + square)

    def split(self, x: Tensor, weight: Tensor) -> Split:
        """The scale, shifts and entries of parts x [m, part]."""
        order = x.argsort(dim=1, stable=True)
        linear, square = self._sums(x, weight, order)
        chosen = _first_best(linear, square)
        at = chosen.clamp_min(0)[None]
        scale = (linear.gather(0, at) / square.gather(0, at)).squeeze(0)
        empty = (chosen < 0) | (x.abs().amax(1) < self.nothing)
        shifts = 2**self.groups
        cut, shift = at[0] // shifts, at[0] % shifts
        first, second = (bounds[cut][:, None] for bounds in _cuts(self.part))
        rank = order.argsort(dim=1)
        places = (rank >= first).long() + (rank >= second)
        negative = scale < 0
        places = torch.where(negative[:, None], 2 - places, places)
        shift = torch.where(negative, shifts - 1 - shift, shift)
        down = shift[:, None] >> torch.arange(self.groups - 1, -1, -1) & 1
        found = self._to_codebook(x, weight, places, scale.abs(), down)
        return Split(
            scale=found.scale.masked_fill(empty, 0.0),
            down=found.down.masked_fill(empty[:, None], 0),
            entries=found.entries.masked_fill(empty[:, None], 0),
        )

    def _sums(self, x: Tensor, weight: Tensor, order: Tensor) -> tuple[Tensor, Tensor]:
        """sum w q x and sum w q^2, [cuts * shifts, m], in the order in which ggml tries them."""
        sorted_weight = weight.gather(1, order)
        product = sorted_weight * x.gather(1, order)
        sums = _whole_sums if self.groups == 1 else _half_sums
        mine = [order * self.groups // self.part == group for group in range(self.groups)]
        below_x = torch.stack([_below(torch.where(own, product, 0.0)) for own in mine])
        below_w = torch.stack([_below(torch.where(own, sorted_weight, 0.0)) for own in mine])
        linear, square = sums(below_x, below_w, *_cuts(self.part))
        return linear.flatten(0, 1), square.flatten(0, 1)

    def _to_codebook(
        self, x: Tensor, weight: Tensor, places: Tensor, scale: Tensor, down: Tensor
    ) -> Split:
        """The nearest entries, and the scale that fits them where they are not the cut itself."""
        shift = (SHIFT - 2 * SHIFT * down).repeat_interleave(self.part // 8 // self.groups, 1)
        entries, found = self.search.entries(
            places.view(-1, 8),
            x.view(-1, 8),
            weight.view(-1, 8),
            scale.repeat_interleave(self.part // 8),
            shift.view(-1),
        )
        entries = entries.view(len(x), -1)
        level = (self.search.levels[entries] + shift[:, :, None]).flatten(1)
        linear = running_sum(weight * level * x)
        square = running_sum(weight * level * level)
        fit = ~found.view(len(x), -1).all(1) & (linear > 0) & (square > 0)
        return Split(scale=torch.where(fit, linear / square, scale), down=down, entries=entries)


@lru_cache
def _cuts(part: int) -> tuple[Tensor, Tensor]:
    """Where the zeros begin and where they end, for every way to cut a part."""
    first, second = torch.triu_indices(part + 1, part + 1).unbind(0)
    return first, second


def _below(terms: Tensor) -> Tensor:
    """[part + 1, m]: sums of the terms [m, part] before each place."""
    sums = [torch.zeros(len(terms))]
    for term in terms.unbind(1):
        sums.append(sums[-1] + term)
    return torch.stack(sums)


def _levels(sign: int) -> tuple[float, float, float]:
    shift = sign * SHIFT
    return shift - 1, shift, shift + 1


def _whole_sums(
    below_x: Tensor, below_w: Tensor, first: Tensor, second: Tensor
) -> tuple[Tensor, Tensor]:
    """[cuts, 2, m] of sums below [1, part + 1, m]; the shift is up, then down."""
    linear, square = [], []
    for minus, zero, plus in (_levels(1), _levels(-1)):
        x, w = below_x[0], below_w[0]
        linear.append(x[first] * minus + (x[second] - x[first]) * zero + (x[-1] - x[second]) * plus)
        square.append(
            w[first] * minus * minus
            + (w[second] - w[first]) * zero * zero
            + (w[-1] - w[second]) * plus * plus
        )
    return torch.stack(linear, 1), torch.stack(square, 1)


def _half_sums(
    below_x: Tensor, below_w: Tensor, first: Tensor, second: Tensor
) -> tuple[Tensor, Tensor]:
    """[cuts, 4, m] of sums below [2, part + 1, m], one for each half; the shifts are up or down for
    the first half, and for each the same for the second."""
    linear, square = [], []
    for x, w in zip(below_x, below_w, strict=True):
        both = x[first] + x[second]
        for minus, zero, plus in (_levels(1), _levels(-1)):
            linear.append(x[-1] * plus - both)
            square.append(
                w[-1] * plus * plus
                + w[first] * (minus * minus - zero * zero)
                + w[second] * (zero * zero - plus * plus)
            )
    pairs = [(0, 2), (0, 3), (1, 2), (1, 3)]
    return (
        torch.stack([linear[a] + linear[b] for a, b in pairs], 1),
        torch.stack([square[a] + square[b] for a, b in pairs], 1),
    )


def _first_best(linear: Tensor, square: Tensor) -> Tensor:
    """Which of [c, m] has the largest linear^2 / square, compared one after another; -1 where no
    square is above zero."""
    gains = linear / square * linear
    best = torch.full((linear.shape[1],), _LOWEST)
    chosen = torch.full_like(best, -1, dtype=torch.long)
    squared = (linear * linear).masked_fill_(square <= 0, -torch.inf)
    for number, (over, under, gain) in enumerate(zip(squared, square, gains, strict=True)):
        better = over > best * under
        best = torch.where(better, gain, best)
        chosen = chosen.masked_fill_(better, number)
    return chosen
