"""One option for each group, the total cost least within a budget of bytes. No torch.

A multiple-choice knapsack. On each group's lower convex hull of (bytes, cost), the Lagrangian
min cost + price * bytes is solved group by group, and a falling price buys hull steps in the order
of what they save per byte: the cheapest total for every budget that the path meets. Between two
such budgets what is left is filled greedily, and dynamic programming looks for anything better.
The Lagrangian bounds how far an optimal choice may be from it, which leaves little to look at
(D. Pisinger, "A minimal algorithm for the multiple-choice knapsack problem", 1995).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Generic, TypeVar

from llmopt.errors import RequestError

Setting = TypeVar("Setting")


@dataclass(frozen=True)
class Option(Generic[Setting]):
    """One way to store a group: its size in bytes, its cost in any unit that adds up."""

    setting: Setting
    bytes: int
    cost: float


Hull = Sequence[Option[Setting]]
#: indices chosen for the first groups, the last one first: (index, (index, (..., None)))
Trail = tuple[int, "Trail"] | None

#: partial choices that are looked at together; where there are more, the closest in size are one
_MOST_PARTIAL = 2000


def lower_hull(options: Sequence[Option[Setting]]) -> list[Option[Setting]]:
    """The options on the lower convex hull: each larger one saves less per byte than the last."""
    hull: list[Option[Setting]] = []
    for option in sorted(options, key=lambda each: (each.bytes, each.cost)):
        if hull and option.cost >= hull[-1].cost:
            continue
        while len(hull) > 1 and _saving(hull[-2], hull[-1]) <= _saving(hull[-1], option):
            hull.pop()
        if hull and hull[-1].bytes == option.bytes:
            continue
        hull.append(option)
    return hull


def allocate(hulls: Sequence[Hull[Setting]], budget: int) -> list[int]:
    """The index of the chosen option of each hull; together they take at most `budget` bytes.

    RequestError where not even the smallest options fit.
    """
    least = sum(hull[0].bytes for hull in hulls)
    if least > budget:
        raise RequestError(
            f"the budget is {budget:,} bytes, and the smallest choices take {least:,}",
            hint="raise the target, or allow smaller candidates",
        )
    price = _price(hulls, budget)
    chosen = [_cheapest(hull, price) for hull in hulls]
    _fill(hulls, chosen, budget - size(hulls, chosen))
    return _better(hulls, chosen, price, budget)


def size(hulls: Sequence[Hull[Setting]], chosen: Sequence[int]) -> int:
    """Bytes of the chosen options."""
    return sum(hull[index].bytes for hull, index in zip(hulls, chosen, strict=True))


def cost(hulls: Sequence[Hull[Setting]], chosen: Sequence[int]) -> float:
    """Cost of the chosen options."""
    return sum(hull[index].cost for hull, index in zip(hulls, chosen, strict=True))


def exchanges(
    hulls: Sequence[Hull[Setting]], chosen: Sequence[int], left: int
) -> list[tuple[float, list[tuple[int, int]]]]:
    """(change of cost, [(group, new index), ...]) of every move that fits into `left` more bytes.

    A move takes one group one step up, alone or with another group as far down as that takes.
    Sorted, the best first.
    """
    moves = []
    for up, hull in enumerate(hulls):
        if chosen[up] + 1 == len(hull):
            continue
        now, then = hull[chosen[up]], hull[chosen[up] + 1]
        lacking, gain = then.bytes - now.bytes - left, then.cost - now.cost
        step = (up, chosen[up] + 1)
        if lacking <= 0:
            moves.append((gain, [step]))
            continue
        for down, other in enumerate(hulls):
            held = other[chosen[down]]
            for index in reversed(range(chosen[down] if down != up else 0)):
                if held.bytes - other[index].bytes >= lacking:
                    moves.append((gain + other[index].cost - held.cost, [step, (down, index)]))
                    break
    return sorted(moves)


def _saving(smaller: Option[Setting], larger: Option[Setting]) -> float:
    """Cost saved per byte by going from one option to a larger one."""
    extra = larger.bytes - smaller.bytes
    return (smaller.cost - larger.cost) / extra if extra else float("inf")


def _price(hulls: Sequence[Hull[Setting]], budget: int) -> float:
    """The lowest price of a byte at which what everyone buys fits the budget, by bisection."""
    prices = sorted({_saving(a, b) for hull in hulls for a, b in pairwise(hull)} | {0.0})
    low, high = -1, len(prices) - 1  # at the highest price nobody buys a step
    while high - low > 1:
        middle = (low + high) // 2
        fits = size(hulls, [_cheapest(hull, prices[middle]) for hull in hulls]) <= budget
        low, high = (low, middle) if fits else (middle, high)
    return prices[high]


def _cheapest(hull: Hull[Setting], price: float) -> int:
    """The smallest option whose next step saves no more than the price."""
    for index, (a, b) in enumerate(pairwise(hull)):
        if _saving(a, b) <= price:
            return index
    return len(hull) - 1


def _fill(hulls: Sequence[Hull[Setting]], chosen: list[int], left: int) -> None:
    """Take the steps that save most per byte as long as one fits into the bytes left."""
    while True:
        steps = [
            (_saving(hull[index], hull[index + 1]), -group)
            for group, (hull, index) in enumerate(zip(hulls, chosen, strict=True))
            if index + 1 < len(hull) and hull[index + 1].bytes - hull[index].bytes <= left
        ]
        if not steps:
            return
        group = -max(steps)[1]
        left -= hulls[group][chosen[group] + 1].bytes - hulls[group][chosen[group]].bytes
        chosen[group] += 1


@dataclass(frozen=True)
class _Partial:
    """Options of the first groups. `regret`: what they cost, bytes at their price, above the least.

    The regrets of all groups are how far a choice that leaves no byte is above the Lagrangian's
    lower bound on any choice, so they bound what can still come of these options.
    """

    bytes: int
    cost: float
    regret: float
    trail: Trail


def _better(
    hulls: Sequence[Hull[Setting]], known: list[int], price: float, budget: int
) -> list[int]:
    """The cheapest choice within the budget, or `known` where none is found that is cheaper.

    Group by group, of partial choices those are kept that no other beats in both bytes and cost.
    """
    floors = [min(each.cost + price * each.bytes for each in hull) for hull in hulls]
    gap = cost(hulls, known) + price * budget - sum(floors)
    least = sum(hull[0].bytes for hull in hulls)  # of the groups to come
    partial = [_Partial(0, 0.0, 0.0, None)]
    for hull, floor in zip(hulls, floors, strict=True):
        least -= hull[0].bytes
        longer = (
            _Partial(
                before.bytes + option.bytes,
                before.cost + option.cost,
                before.regret + option.cost + price * option.bytes - floor,
                (index, before.trail),
            )
            for before in partial
            for index, option in enumerate(hull)
        )
        room = budget - least
        partial = _undominated(p for p in longer if p.regret < gap and p.bytes <= room)
    if not partial or partial[-1].cost >= cost(hulls, known):
        return known
    return [*_indices(partial[-1].trail)][::-1]


def _undominated(partial: Iterable[_Partial]) -> list[_Partial]:
    """Those that no other beats in both bytes and cost, the smallest first; see _MOST_PARTIAL."""
    front: list[_Partial] = []
    for each in sorted(partial, key=lambda p: (p.bytes, p.cost)):
        if not front or each.cost < front[-1].cost:
            front.append(each)
    if len(front) <= _MOST_PARTIAL:
        return front
    width = (front[-1].bytes - front[0].bytes) / _MOST_PARTIAL
    closest: dict[int, _Partial] = {}
    for each in front:
        place = int((each.bytes - front[0].bytes) / width)
        if place not in closest or each.regret < closest[place].regret:
            closest[place] = each
    return list(closest.values())


def _indices(trail: Trail) -> Iterator[int]:
    while trail is not None:
        index, trail = trail
        yield index
