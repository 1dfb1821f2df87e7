"""The knapsack against brute force."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest

from llmopt.allocate.budget import Option, allocate, cost, lower_hull, size
from llmopt.errors import RequestError


def options(seed: int, count: int = 6) -> list[Option[str]]:
    """Random sizes, costs that mostly fall with them: some on the hull, some not."""
    draw = random.Random(seed)
    sizes = draw.sample(range(10, 200), count)
    return [Option(f"{n}", n, draw.uniform(0.5, 1.5) * 4 ** (-n / 40)) for n in sizes]


@pytest.mark.parametrize("seed", range(10))
def test_the_hull_is_what_some_price_makes_best(seed: int) -> None:
    all_options = options(seed)
    hull = lower_hull(all_options)
    best = set()
    for exponent in range(-400, 100):
        price = 10 ** (exponent / 50)
        best.add(min(all_options, key=lambda o: o.cost + price * o.bytes).setting)
    assert best <= {each.setting for each in hull}
    for a, b, c in zip(hull, hull[1:], hull[2:], strict=False):
        assert (a.cost - b.cost) / (b.bytes - a.bytes) > (b.cost - c.cost) / (c.bytes - b.bytes)
    assert hull[0].bytes == min(each.bytes for each in all_options)
    assert hull[-1].cost == min(each.cost for each in all_options)


def test_of_equal_sizes_the_cheaper_is_on_the_hull() -> None:
    hull = lower_hull([Option("a", 10, 3.0), Option("b", 10, 2.0), Option("c", 20, 1.0)])
    assert [each.setting for each in hull] == ["b", "c"]


# with seeds 83 and 169 greed alone, even with exchanges of two steps, ends 40% above the best
@pytest.mark.parametrize("seed", [*range(12), 83, 169])
def test_as_good_as_brute_force_and_never_over_budget(seed: int) -> None:
    hulls = [lower_hull(options(100 * seed + group)) for group in range(6)]
    totals = [(0, 0.0)]
    for hull in hulls:
        totals = [(b + o.bytes, c + o.cost) for b, c in totals for o in hull]
    draw = random.Random(seed)
    least, most = sum(h[0].bytes for h in hulls), sum(h[-1].bytes for h in hulls)
    for _ in range(5):
        budget = draw.randint(least, most)
        chosen = allocate(hulls, budget)
        assert size(hulls, chosen) <= budget
        best = min(total for taken, total in totals if taken <= budget)
        assert cost(hulls, chosen) == pytest.approx(best)


def test_exact_where_the_budget_is_a_point_of_the_lagrangian() -> None:
    hulls = [lower_hull(options(group)) for group in range(5)]
    for price in (0.001, 0.003, 0.01, 0.03):
        lagrangian = [
            min(range(len(h)), key=lambda i, h=h: h[i].cost + price * h[i].bytes) for h in hulls
        ]
        chosen = allocate(hulls, size(hulls, lagrangian))
        assert cost(hulls, chosen) == pytest.approx(cost(hulls, lagrangian))


def test_all_that_fits_is_taken_and_what_cannot_fit_is_refused() -> None:
    hulls = [lower_hull(options(group)) for group in range(4)]
    assert allocate(hulls, 10**6) == [len(hull) - 1 for hull in hulls]
    least = sum(hull[0].bytes for hull in hulls)
    assert allocate(hulls, least) == [0, 0, 0, 0]
    with pytest.raises(RequestError, match="the smallest choices take"):
        allocate(hulls, least - 1)


def test_many_groups_keep_to_the_budget_and_close_to_the_lagrangian() -> None:
    # more partial choices than are looked at together; thousands of bytes, so little is left over
    hulls = [
        lower_hull([replace(o, bytes=o.bytes * 997 + seed) for o in options(seed)])
        for seed in range(120)
    ]
    least, most = sum(h[0].bytes for h in hulls), sum(h[-1].bytes for h in hulls)
    budget = (2 * least + most) // 3
    chosen = allocate(hulls, budget)
    assert size(hulls, chosen) <= budget
    bound = max(
        sum(min(o.cost + price * o.bytes for o in h) for h in hulls) - price * budget
        for price in (10 ** (exponent / 50) for exponent in range(-500, -100))
    )
    assert bound <= cost(hulls, chosen) <= 1.001 * bound


def test_programming_mends_what_greed_leaves() -> None:
    # a's step saves most per byte, but b's, which then no longer fits, saves more
    a = lower_hull([Option("a0", 0, 10.0), Option("a1", 60, 3.0)])
    b = lower_hull([Option("b0", 0, 8.0), Option("b1", 90, 0.5)])
    assert allocate([a, b], 90) == [0, 1]
