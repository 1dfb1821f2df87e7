"""Corrections, and exchanges on measured divergence, with a made-up world to measure."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import pytest

from llmopt.allocate.budget import Option, lower_hull
from llmopt.allocate.search import search
from llmopt.allocate.sensitivity import Group
from llmopt.model.layout import Layout

SETTINGS = [Layout(grid=f"int{bits}", group_size=32, symmetric=True) for bits in (2, 3, 4, 8)]
LIMIT = 6 * 36


def group(index: int, kind: str, weight: float) -> Group:
    tried = tuple(Option(s, s.bits * 8, weight * 4.0**-s.bits) for s in SETTINGS)
    return Group((f"{index}.{kind}",), kind, 64, tuple(lower_hull(tried)), tried)


GROUPS = [group(i, "ab"[i % 2], 1.0 + i) for i in range(6)]


class World:
    """True divergence: the costs times a factor of their kind, some linears apart from that."""

    def __init__(self, factors: dict[str, float], odd: dict[int, float] | None = None) -> None:
        self.factors, self.odd, self.calls = factors, odd or {}, 0

    def __call__(self, settings: Sequence[Layout | None]) -> float:
        self.calls += 1
        return self.true(settings)

    def true(self, settings: Sequence[Layout | None]) -> float:
        total = 0.0
        for index, (each, setting) in enumerate(zip(GROUPS, settings, strict=True)):
            if setting is not None:
                raw = (1.0 + index) * 4.0**-setting.bits
                total += raw * self.factors[each.kind] * self.odd.get(index, 1.0)
        return total

    def best(self) -> float:
        choices = itertools.product(SETTINGS, repeat=len(GROUPS))
        return min(self.true(c) for c in choices if sum(s.bits * 8 for s in c) <= LIMIT)


def test_factors_of_kinds_are_found_and_used() -> None:
    world = World({"a": 3.0, "b": 0.5})
    found = search(GROUPS, LIMIT, world, tries=0)
    assert found.corrections == pytest.approx({"a": 3.0, "b": 0.5})
    assert found.modelled == pytest.approx(found.measured)
    assert found.bytes <= LIMIT
    assert found.measured == pytest.approx(world.best(), rel=0.1)
    assert world.calls == 4  # each kind, all, and the choice made with the factors


def test_what_all_together_do_counts() -> None:
    class Superadditive(World):
        def true(self, settings: Sequence[Layout | None]) -> float:
            factor = 1.0 if None in settings else 1.3
            return factor * super().true(settings)

    found = search(GROUPS, LIMIT, Superadditive({"a": 1.0, "b": 1.0}), tries=0)
    assert found.corrections == pytest.approx({"a": 1.3, "b": 1.3})


def test_exchanges_find_a_linear_that_the_costs_misjudge() -> None:
    world = World({"a": 1.0, "b": 1.0}, odd={0: 40.0})
    without = search(GROUPS, LIMIT, world, tries=0)
    found = search(GROUPS, LIMIT, world, tries=12)
    assert found.measured < 0.9 * without.measured
    assert found.exchanges > 0
    assert found.bytes <= LIMIT
    assert found.measured == pytest.approx(world.true(found.settings))


def test_a_measurement_of_nothing_corrects_nothing() -> None:
    found = search(GROUPS, LIMIT, lambda _: 0.0, tries=3)
    assert set(found.corrections.values()) == {1.0}
    assert found.exchanges == 0
