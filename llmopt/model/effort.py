"""How much a step has to do, by kinds of work: what its time follows from, on any machine."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Effort:
    """Amounts of work by kind, an id in specs.WORK, each in the unit of its kind."""

    amounts: Mapping[str, float] = field(default_factory=dict)

    def __add__(self, other: Effort) -> Effort:
        return total((self, other))

    def __mul__(self, times: float) -> Effort:
        return Effort({kind: amount * times for kind, amount in self.amounts.items()})


def total(efforts: Iterable[Effort]) -> Effort:
    """All of them, one after the other."""
    found: dict[str, float] = defaultdict(float)
    for each in efforts:
        for kind, amount in each.amounts.items():
            found[kind] += amount
    return Effort(dict(found))


NO_EFFORT = Effort()
