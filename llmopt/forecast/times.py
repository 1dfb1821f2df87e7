"""Seconds from what there is to do, and durations as a person says them. No torch."""

from __future__ import annotations

from collections.abc import Mapping

from llmopt.model.effort import Effort

#: (seconds in a unit, what it is called), the shortest first
_UNITS = ((1.0, "s"), (60.0, "min"), (3600.0, "h"), (86400.0, "days"))
#: units of a kind from which on the next one is used
_MOST = (90.0, 90.0, 48.0)


def seconds(effort: Effort, speeds: Mapping[str, float]) -> float:
    """How long it takes at these seconds a unit."""
    return sum(amount * speeds[kind] for kind, amount in effort.amounts.items())


def in_words(duration: float) -> str:
    """`about 12 min`: no finer than a forecast is, two digits at most."""
    index = 0
    while index < len(_MOST) and duration / _UNITS[index][0] >= _MOST[index]:
        index += 1
    unit, name = _UNITS[index]
    return f"about {_rounded(duration / unit):g} {name}"


def _rounded(amount: float) -> float:
    """To a number that is said: 1, 2, ... 10, 15, ... 90; below 3, halves, but at least 1."""
    if amount >= 12.5:
        return 5 * round(amount / 5)
    return max(1.0, round(amount * 2) / 2 if amount < 3 else round(amount))
