"""Statistics of experts: each sees only the tokens that its router sends to it, maybe too few.

An expert's input with fewer tokens than channels has a Hessian without an inverse, and says more
about those tokens than about the channels. Such a cold expert is given the statistics of all
experts of its block together.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import torch

from llmopt.errors import LlmoptError
from llmopt.linalg import InputStatistics, MeanSquares
from llmopt.specs.families import Naming

#: the names of linears that share an input
Names = tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Collected:
    """Linears that share an input, and what flows into them.

    cold: what reached an expert whose statistics are those of all experts, else None.
    """

    names: Names
    statistics: InputStatistics | None
    cold: MeanSquares | None = None


class Pools:
    """What the experts of one block share: a pool for each linear that all of them have."""

    def __init__(self, naming: Naming, block: int) -> None:
        self._naming = naming
        self._pools: dict[str, InputStatistics] = {}
        self._cold: dict[str, list[tuple[Names, MeanSquares]]] = defaultdict(list)
        self._missing: dict[str, int] = defaultdict(int)
        for names in naming.linears(block):
            pool = naming.pool_of(names[0])
            if pool is not None:
                self._missing[pool] += 1

    def sort(
        self, seen: Iterable[tuple[Names, InputStatistics | None]], width: Callable[[str], int]
    ) -> Iterator[Collected]:
        """What can be worked on now, given what has been seen of some inlets.

        None stands for an inlet that nothing reached. Cold experts are kept back until the last
        of their block's experts has been seen.
        """
        for names, statistics in seen:
            pool = self._naming.pool_of(names[0])
            if pool is None:
                yield Collected(names=names, statistics=_reached(names, statistics))
                continue
            self._missing[pool] -= 1
            if statistics is not None:
                self._add(pool, statistics)
            cols = width(names[0])
            if statistics is None or statistics.tokens < cols:
                nothing = MeanSquares(mean=torch.zeros(cols), tokens=0)
                self._cold[pool].append((names, statistics.squares if statistics else nothing))
            else:
                yield Collected(names=names, statistics=statistics)
        for pool in [pool for pool in self._cold if not self._missing[pool]]:
            for names, squares in self._cold.pop(pool):
                shared = _reached(names, self._pools.get(pool))
                yield Collected(names=names, statistics=shared, cold=squares)
            self._pools.pop(pool)

    def _add(self, pool: str, statistics: InputStatistics) -> None:
        if pool not in self._pools:
            self._pools[pool] = InputStatistics.empty(
                len(statistics.diagonal), statistics.wanted, statistics.diagonal.device
            )
        self._pools[pool].absorb(statistics)


def _reached(names: Names, statistics: InputStatistics | None) -> InputStatistics:
    if statistics is None:
        raise LlmoptError(f"no activations reached {names[0]}")
    return statistics
