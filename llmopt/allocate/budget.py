"""One option for each group, the total cost least within a budget of bytes. No torch.

A multiple-choice knapsack. On each group's lower convex hull of (bytes, cost), the Lagrangian
min cost + price * bytes is solved group by group, and a falling price buys hull steps in the order
of what they save per byte: the cheapest total for every budget that the path meets. Between two
such budgets what is left is filled greedily, and exchanges of two steps mend the rest.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
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
    left = budget - size(hulls, chosen)
    left = _fill(hulls, chosen, left)
    while exchange := next(improvements(hulls, chosen, left), None):
        left += size(hulls, chosen)
        for group, index in exchange:
            chosen[group] = index
        left -= size(hulls, chosen)
    return chosen


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


def improvements(
    hulls: Sequence[Hull[Setting]], chosen: Sequence[int], left: int
) -> Iterator[list[tuple[int, int]]]:
    """The moves that lower the cost by more than rounding, the best first."""
    floor = -1e-9 * cost(hulls, chosen)
    return (move for change, move in exchanges(hulls, chosen, left) if change < floor)


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


def _fill(hulls: Sequence[Hull[Setting]], chosen: list[int], left: int) -> int:
    """Take the steps that save most per byte as long as one fits; returns what is left."""
    while True:
        steps = [
            (_saving(hull[index], hull[index + 1]), -group)
            for group, (hull, index) in enumerate(zip(hulls, chosen, strict=True))
            if index + 1 < len(hull) and hull[index + 1].bytes - hull[index].bytes <= left
        ]
        if not steps:
            return left
        group = -max(steps)[1]
        left -= hulls[group][chosen[group] + 1].bytes - hulls[group][chosen[group]].bytes
        chosen[group] += 1
