"""How long counted work still takes, going by how long its units took so far."""

from __future__ import annotations

import statistics
import time
from collections import deque
from collections.abc import Callable

Clock = Callable[[], float]
#: reports whose units are looked at: one that took long, or a sleep of the machine, is outvoted
_LOOKED_AT = 9


class TimeLeft:
    """Of one count. Units are taken to be of about equal work.

    Units that are reported together at the beginning were done in an earlier run, or replayed from
    what it left: they say nothing of those to come.
    """

    def __init__(self, clock: Clock = time.monotonic) -> None:
        self._clock = clock
        self._done, self._total, self._at = 0, 0, 0.0
        self._reports = 0
        self._units: deque[float] = deque(maxlen=_LOOKED_AT)

    def heard(self, done: int, total: int) -> None:
        """`done` of `total` units are finished now."""
        now = self._clock()
        new = done - self._done
        begun_before = self._reports == 1 and not self._units and new > 1
        if self._reports and new > 0 and not begun_before:
            self._units.append((now - self._at) / new)
        if new > 0 or not self._reports:
            self._at = now
        self._done, self._total = done, total
        self._reports += 1

    @property
    def seconds(self) -> float | None:
        """From now on; None as long as no unit was seen from its beginning to its end."""
        if not self._units:
            return None
        unit, left = statistics.median(self._units), self._total - self._done
        present = max(0.0, unit - (self._clock() - self._at))
        return present + unit * (left - 1) if left else 0.0
