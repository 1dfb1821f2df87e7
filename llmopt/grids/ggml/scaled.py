"""The search for blocks whose parts are scaled by a whole-number multiple of the block's scale.

value = d * multiplier[l] * unit(code): d is float16, one for a block; l is a small number, one for
each of the block's k parts. The search alternates between codes at fixed scales, l, and d, as long
as the weighed squared error falls.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from llmopt.grids.ggml.bits import to_half

__all__ = ["NearestLevels", "ScaledCodes", "Space", "fit_scales", "search"]

_ROUNDS = 2
#: a round that lowers the error by less than this share is the last
_WORTH = 1e-3
#: what is tried of d, around the one that lets the largest part have the largest multiplier
_STRETCH = torch.linspace(0.85, 1.4, 45)


class NearestLevels(Protocol):
    """The codes int64 [m, c] and units float32 [m, part] that lose least at fixed scales.

    x, weight: [m, part]; scale: [m].
    """

    def __call__(self, x: Tensor, weight: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]: ...


@dataclass(frozen=True, kw_only=True)
class Space:
    """What a type allows, and where a search begins.

    multipliers: float32, ascending in equal steps. levels: float32, ascending, those that single
    units may have. starts: the largest magnitude of a part over these is a first scale. around: the
    best of those times these is tried with the units that there really are.
    """

    multipliers: Tensor
    levels: Tensor
    starts: Tensor
    around: tuple[float, ...] = (1.0,)


@dataclass(frozen=True, kw_only=True)
class ScaledCodes:
    """What was found for n blocks: d [n], l int64 [n, k], codes int64 [n, k, c], error [n, k]."""

    d: Tensor
    l: Tensor  # noqa: E741 - ggml's name
    codes: Tensor
    units: Tensor
    error: Tensor

    def where(self, better: Tensor, other: ScaledCodes) -> ScaledCodes:
        """`other` where `better` [n, k] says so; d must be the same or whole blocks change."""
        part = better[:, :, None]
        return ScaledCodes(
            d=torch.where(better.all(1), other.d, self.d),
            l=torch.where(better, other.l, self.l),
            codes=torch.where(part, other.codes, self.codes),
            units=torch.where(part, other.units, self.units),
            error=torch.where(better, other.error, self.error),
        )

    def rows(self, rows: Tensor) -> ScaledCodes:
        return ScaledCodes(
            d=self.d[rows],
            l=self.l[rows],
            codes=self.codes[rows],
            units=self.units[rows],
            error=self.error[rows],
        )

    def put(self, rows: Tensor, other: ScaledCodes) -> None:
        for name in ("d", "l", "codes", "units", "error"):
            getattr(self, name)[rows] = getattr(other, name)


def search(x: Tensor, weight: Tensor, nearest: NearestLevels, space: Space) -> ScaledCodes:
    """The best found for x [n, k, part] under weight [n, k, part] > 0."""
    multipliers = space.multipliers
    s, curvature = _free_scales(x.flatten(0, 1), weight.flatten(0, 1), nearest, space)
    shape = x.shape[:2]
    d, l = _quantized(s.view(shape), curvature.view(shape), multipliers)  # noqa: E741
    state = _at(x, weight, d, l, nearest, multipliers)
    active = torch.arange(len(x))
    for _ in range(_ROUNDS):
        before = state.rows(active)
        after = _improve(x[active], weight[active], before, nearest, multipliers)
        state.put(active, after)
        active = active[after.error.sum(1) < before.error.sum(1) * (1 - _WORTH)]
        if not len(active):
            break
    return state


def _free_scales(
    x: Tensor, weight: Tensor, nearest: NearestLevels, space: Space
) -> tuple[Tensor, Tensor]:
    """The best scale of each part [m] on its own, and how the error grows around it.

    It is first sought as if every level could follow every other, which is quick, then around that.
    """
    top = x.abs().amax(1)
    middles = (space.levels[1:] + space.levels[:-1]) / 2

    def rounded(scale: Tensor) -> Tensor:
        inverse = torch.where(scale == 0, 0.0, 1 / scale)
        return space.levels[torch.bucketize(x * inverse[:, None], middles)]

    starts = [top / start for start in space.starts.tolist()]
    scale, _ = _best_fit(x, weight, starts, rounded)
    around = [scale * factor for factor in space.around]
    return _best_fit(x, weight, around, lambda at: nearest(x, weight, at)[1])


def _best_fit(
    x: Tensor, weight: Tensor, scales: list[Tensor], units_at: Callable[[Tensor], Tensor]
) -> tuple[Tensor, Tensor]:
    """The best of the fits to the units at each of some scales [m]."""
    best = torch.zeros(len(x))
    scale, curvature = torch.zeros_like(best), torch.zeros_like(best)
    for at in scales:
        fitted, square = _fit(x, weight, units_at(at))
        gain = fitted * fitted * square
        scale = torch.where(gain > best, fitted, scale)
        curvature = torch.where(gain > best, square, curvature)
        best = torch.maximum(best, gain)
    return scale, curvature


def _fit(x: Tensor, weight: Tensor, units: Tensor) -> tuple[Tensor, Tensor]:
    """The scales that lose least at given units, and sum weight * unit^2."""
    weighed = weight * units
    square = (weighed * units).sum(-1)
    return torch.where(square > 0, (weighed * x).sum(-1) / square, 0.0), square


def fit_scales(
    x: Tensor, weight: Tensor, units: Tensor, multipliers: Tensor
) -> tuple[Tensor, Tensor]:
    """d [n] and l [n, k] that lose least at given units; all others [n, k, part]."""
    return _quantized(*_fit(x, weight, units), multipliers)


def _quantized(s: Tensor, curvature: Tensor, multipliers: Tensor) -> tuple[Tensor, Tensor]:
    """d [n] and l [n, k] of the least sum of curvature * (d * multiplier[l] - s)^2, all [n, k]."""
    largest = s.gather(1, s.abs().argmax(1, keepdim=True)).squeeze(1)
    ends = multipliers[[0, -1]] if multipliers[0] < 0 else multipliers[-1:]
    candidates = torch.cat([_STRETCH / end for end in ends]) if len(multipliers) > 1 else 1 / ends
    best = torch.full_like(largest, torch.inf)
    d = torch.zeros_like(largest)
    for factor in candidates.tolist():
        trial = to_half(largest * factor)
        miss = s - trial[:, None] * multipliers[_level(s, trial, multipliers)]
        cost = (curvature * miss * miss).sum(1)
        better = cost < best
        best, d = torch.where(better, cost, best), torch.where(better, trial, d)
    l = _level(s, d, multipliers)  # noqa: E741
    return _refit(s, curvature, d, multipliers[l]), l


def _level(s: Tensor, d: Tensor, multipliers: Tensor) -> Tensor:
    """The l [n, k] for which d * multiplier[l] is nearest to s."""
    if len(multipliers) == 1:
        return torch.zeros_like(s, dtype=torch.long)
    step = multipliers[1] - multipliers[0]
    quotient = torch.where(d[:, None] == 0, 0.0, s / d[:, None])
    return ((quotient - multipliers[0]) / step).round().clamp(0, len(multipliers) - 1).long()


def _refit(s: Tensor, curvature: Tensor, d: Tensor, multiplier: Tensor) -> Tensor:
    """The float16 d that loses least at given multipliers [n, k]."""
    square = (curvature * multiplier * multiplier).sum(1)
    fitted = (curvature * multiplier * s).sum(1) / square
    return to_half(torch.where((square > 0) & (fitted.abs() > 0), fitted, d))


def _at(
    x: Tensor,
    weight: Tensor,
    d: Tensor,
    l: Tensor,  # noqa: E741
    nearest: NearestLevels,
    multipliers: Tensor,
) -> ScaledCodes:
    """The best codes at given scales."""
    n, k, part = x.shape
    scale = (d[:, None] * multipliers[l]).view(-1)
    flat, flat_weight = x.reshape(-1, part), weight.reshape(-1, part)
    codes, units = nearest(flat, flat_weight, scale)
    gap = flat - scale[:, None] * units
    error = (flat_weight * gap * gap).sum(1)
    return ScaledCodes(
        d=d,
        l=l,
        codes=codes.view(n, k, -1),
        units=units.view(n, k, part),
        error=error.view(n, k),
    )


def _improve(
    x: Tensor, weight: Tensor, state: ScaledCodes, nearest: NearestLevels, multipliers: Tensor
) -> ScaledCodes:
    """One round: d, l, then codes, given the units; then each l a step to where its part pulls."""
    s, square = _fit(x, weight, state.units)
    d = _refit(s, square, state.d, multipliers[state.l])
    trial = _at(x, weight, d, _level(s, d, multipliers), nearest, multipliers)
    better = trial.error.sum(1) < state.error.sum(1)
    state = state.where(better[:, None].expand_as(state.l), trial)
    if len(multipliers) == 1:
        return state
    towards = torch.where(s > state.d[:, None] * multipliers[state.l], 1, -1)
    towards = torch.where(state.d[:, None] < 0, -towards, towards)
    moved = (state.l + towards).clamp(0, len(multipliers) - 1)
    trial = _at(x, weight, state.d, moved, nearest, multipliers)
    return state.where(trial.error < state.error, trial)
