"""The search for blocks whose parts are scaled by a whole-number multiple of the block's scale.

value = d * multiplier[l] * unit(code): d is float16, one for a block; l is a small number, one for
each of the block's k parts. The search alternates between codes at fixed scales, l, and d, as long
as the weighed squared error falls.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from llmopt.grids.ggml.bits import to_half

__all__ = ["Nearest", "Scaled", "fit_scales", "search"]

_ROUNDS = 4
#: a round that lowers the error by less than this share is the last
_WORTH = 1e-3
#: what is tried of d, around the one that lets the largest part have the largest multiplier
_STRETCH = torch.linspace(0.85, 1.4, 45)


class Nearest(Protocol):
    """The codes int64 [m, c] and units float32 [m, part] that lose least at fixed scales.

    x, weight: [m, part]; scale: [m].
    """

    def __call__(self, x: Tensor, weight: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]: ...


@dataclass(frozen=True, kw_only=True)
class Scaled:
    """What was found for n blocks: d [n], l int64 [n, k], codes int64 [n, k, c], error [n, k]."""

    d: Tensor
    l: Tensor  # noqa: E741 - ggml's name
    codes: Tensor
    units: Tensor
    error: Tensor

    def where(self, better: Tensor, other: Scaled) -> Scaled:
        """`other` where `better` [n, k] says so; d must be the same or whole blocks change."""
        part = better[:, :, None]
        return Scaled(
            d=torch.where(better.all(1), other.d, self.d),
            l=torch.where(better, other.l, self.l),
            codes=torch.where(part, other.codes, self.codes),
            units=torch.where(part, other.units, self.units),
            error=torch.where(better, other.error, self.error),
        )

    def rows(self, rows: Tensor) -> Scaled:
        return Scaled(
            d=self.d[rows],
            l=self.l[rows],
            codes=self.codes[rows],
            units=self.units[rows],
            error=self.error[rows],
        )

    def put(self, rows: Tensor, other: Scaled) -> None:
        for name in ("d", "l", "codes", "units", "error"):
            getattr(self, name)[rows] = getattr(other, name)


def search(
    x: Tensor,
    weight: Tensor,
    nearest: Nearest,
    multipliers: Tensor,
    starts: Tensor,
    possible: Tensor,
) -> Scaled:
    """The best found for x [n, k, part] under weight [n, k, part] > 0.

    multipliers: float32, ascending in equal steps. starts: what to divide the largest magnitude of
    a part by for a first scale. possible: ascending, the levels that single units may have.
    """
    s, curvature = _free_scales(
        x.flatten(0, 1), weight.flatten(0, 1), nearest, starts, possible
    )
    shape = x.shape[:2]
    d, l = fit_scales(s.view(shape), curvature.view(shape), multipliers)  # noqa: E741
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
    x: Tensor, weight: Tensor, nearest: Nearest, starts: Tensor, possible: Tensor
) -> tuple[Tensor, Tensor]:
    """The best scale of each part [m] on its own, and how the error grows around it.

    The scale is first sought as if any level could follow any other.
    """
    top = x.abs().amax(1)
    middles = (possible[1:] + possible[:-1]) / 2
    best, scale = torch.zeros_like(top), torch.zeros_like(top)
    for start in starts.tolist():
        inverse = torch.where(top > 0, start / top, 0.0)
        units = possible[torch.bucketize(x * inverse[:, None], middles)]
        fitted, square = _fit(x, weight, units)
        better = fitted * fitted * square > best
        best = torch.where(better, fitted * fitted * square, best)
        scale = torch.where(better, fitted, scale)
    _, units = nearest(x, weight, scale)
    return _fit(x, weight, units)


def _fit(x: Tensor, weight: Tensor, units: Tensor) -> tuple[Tensor, Tensor]:
    """The scales that lose least at given units, and sum weight * unit^2."""
    weighed = weight * units
    square = (weighed * units).sum(-1)
    return torch.where(square > 0, (weighed * x).sum(-1) / square, 0.0), square


def fit_scales(s: Tensor, curvature: Tensor, multipliers: Tensor) -> tuple[Tensor, Tensor]:
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
    nearest: Nearest,
    multipliers: Tensor,
) -> Scaled:
    """The best codes at given scales."""
    n, k, part = x.shape
    scale = (d[:, None] * multipliers[l]).view(-1)
    flat, flat_weight = x.reshape(-1, part), weight.reshape(-1, part)
    codes, units = nearest(flat, flat_weight, scale)
    gap = flat - scale[:, None] * units
    error = (flat_weight * gap * gap).sum(1)
    return Scaled(
        d=d,
        l=l,
        codes=codes.view(n, k, -1),
        units=units.view(n, k, part),
        error=error.view(n, k),
    )


def _improve(
    x: Tensor, weight: Tensor, state: Scaled, nearest: Nearest, multipliers: Tensor
) -> Scaled:
    """One round: a new d for the codes and multipliers there are, then each l a step either way."""
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
