"""What every probe gets and gives: a model to look at, and readings that become measurements."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Protocol

from llmopt.artifact import Artifact
from llmopt.specs.metrics import Metrics

if TYPE_CHECKING:
    from torch import Tensor

    from llmopt.runtimes.base import Engine


@dataclass(frozen=True, kw_only=True)
class Subject:
    """A model that is measured, and what it is compared with; None: nothing.

    open_engine: loads a model when a probe first asks for it. windows: held-out text, int64
    [windows, length]. seed: of the bootstrap. together: what is found of a model on the windows
    where models are evaluated a block at a time rather than whole.
    """

    model: Artifact
    base: Artifact | None
    open_engine: Callable[[Artifact], Engine]
    windows: Tensor
    seed: int
    together: Callable[[Subject], Iterator[Reading]] | None = None


class Reading:
    """What a probe knows after `done` of `total` of what it looks at one by one.

    The metrics are estimates from that part, worked out when they are asked for; those of the
    last reading are what was measured.
    """

    def __init__(
        self,
        done: int,
        total: int,
        metrics: Callable[[], Metrics] = dict,
        base_metrics: Callable[[], Metrics] = dict,
    ) -> None:
        self.done, self.total = done, total
        self._metrics, self._base_metrics = metrics, base_metrics

    @property
    def final(self) -> bool:
        """Whether everything was looked at."""
        return self.done == self.total

    @cached_property
    def metrics(self) -> Metrics:
        """By name, as the table of probes has them."""
        return self._metrics()

    @cached_property
    def base_metrics(self) -> Metrics:
        """What was found of the base on the way."""
        return self._base_metrics()


class Probe(Protocol):
    """A module that the table of probes names, but for those that measure `alone`."""

    def measure(self, subject: Subject) -> Iterator[Reading]:
        """Look at one thing after the other; yields nothing where there is none to look at."""
