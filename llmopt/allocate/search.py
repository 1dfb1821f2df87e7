"""From predicted costs to a choice: corrected by a few measurements, mended by a few more.

The costs' sums miss what errors in different linears do to each other, and each kind of linear by
a factor of its own. So a first choice is measured kind by kind and as a whole, which gives one
factor a kind and one for all; the choice is made again; then single exchanges are tried on real
divergence, those first that the corrected costs like best.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from llmopt.allocate import budget
from llmopt.allocate.budget import Option
from llmopt.allocate.sensitivity import Group
from llmopt.model.layout import Layout

#: a choice, None for a group that stays as it is -> mean KL divergence in nats a position
Measure = Callable[[Sequence[Layout | None]], float]
Hulls = list[list[Option[Layout]]]

#: how far one factor may go: beyond that the measurement says more about itself
_FACTORS = (0.2, 5.0)


@dataclass(frozen=True)
class Allocation:
    """What was chosen for each group.

    modelled: the corrected costs' sum; measured: the divergence of the choice on held-out
    calibration text, with weights that each linear got by itself. corrections: by kind.
    """

    settings: list[Layout]
    bytes: int
    modelled: float
    measured: float
    corrections: dict[str, float]
    exchanges: int


def search(groups: Sequence[Group], limit: int, measure: Measure, *, tries: int) -> Allocation:
    """The settings of least divergence that together take at most `limit` bytes.

    Measures a choice once for each kind of group, twice as a whole, and once for each of `tries`
    exchanges. RequestError where nothing fits.
    """
    hulls: Hulls = [list(group.options) for group in groups]
    chosen = budget.allocate(hulls, limit)
    corrections = _corrections(groups, hulls, chosen, measure)
    hulls = [
        [replace(option, cost=option.cost * corrections[group.kind]) for option in group.options]
        for group in groups
    ]
    chosen = budget.allocate(hulls, limit)
    found = _settings(hulls, chosen)
    chosen, measured, accepted = _exchange(hulls, chosen, limit, measure(found), measure, tries)
    return Allocation(
        settings=_settings(hulls, chosen),
        bytes=budget.size(hulls, chosen),
        modelled=budget.cost(hulls, chosen),
        measured=measured,
        corrections=corrections,
        exchanges=accepted,
    )


def _corrections(
    groups: Sequence[Group], hulls: Hulls, chosen: Sequence[int], measure: Measure
) -> dict[str, float]:
    """Measured over predicted divergence: of each kind alone, times that of all together."""
    factors = {}
    settings = _settings(hulls, chosen)
    kinds = dict.fromkeys(group.kind for group in groups)
    costs = dict.fromkeys(kinds, 0.0)
    for group, hull, index in zip(groups, hulls, chosen, strict=True):
        costs[group.kind] += hull[index].cost
    for kind in kinds:
        alone = [s if g.kind == kind else None for g, s in zip(groups, settings, strict=True)]
        factors[kind] = _factor(measure(alone), costs[kind])
    expected = sum(factors[kind] * costs[kind] for kind in kinds)
    together = _factor(measure(settings), expected)
    return {kind: factor * together for kind, factor in factors.items()}


def _factor(measured: float, predicted: float) -> float:
    if not predicted > 0 or not 0 < measured < math.inf:
        return 1.0
    return min(max(measured / predicted, _FACTORS[0]), _FACTORS[1])


def _exchange(
    hulls: Hulls, chosen: list[int], limit: int, best: float, measure: Measure, tries: int
) -> tuple[list[int], float, int]:
    """Try the moves that the costs like best; keep each that measures lower."""
    tried = {tuple(chosen)}
    accepted = 0
    while tries:
        left = limit - budget.size(hulls, chosen)
        moves = (_moved(chosen, move) for _, move in budget.exchanges(hulls, chosen, left))
        trial = next((each for each in moves if tuple(each) not in tried), None)
        if trial is None:
            break
        tried.add(tuple(trial))
        tries -= 1
        measured = measure(_settings(hulls, trial))
        if measured < best:
            chosen, best, accepted = trial, measured, accepted + 1
    return chosen, best, accepted


def _moved(chosen: Sequence[int], move: Sequence[tuple[int, int]]) -> list[int]:
    moved = list(chosen)
    for group, index in move:
        moved[group] = index
    return moved


def _settings(hulls: Hulls, chosen: Sequence[int]) -> list[Layout]:
    return [hull[index].setting for hull, index in zip(hulls, chosen, strict=True)]
