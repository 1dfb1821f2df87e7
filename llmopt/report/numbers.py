"""Numbers as a person reads them: few digits, one unit a column, a dash for what is not known."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from functools import partial

from llmopt.specs.kinds import weight_files
from llmopt.specs.metrics import Interval, Measurement, MetricSpec, value_of

MISSING = "–"


def short(value: float | None, digits: int = 3) -> str:
    """`digits` significant digits; powers of ten only where plain notation would be long."""
    if value is None or math.isnan(value):
        return MISSING
    if math.isinf(value):
        return "∞" if value > 0 else "−∞"
    if value == 0:
        return "0"
    decimals = digits - 1 - math.floor(math.log10(abs(value)))
    if decimals > 7 or value >= 1e7:
        return f"{value:.{digits - 1}e}"
    rounded = round(value, decimals)
    return f"{rounded:,.{max(decimals, 0)}f}"


def interval(estimate: Measurement | None) -> str:
    """`0.00123 (0.00110–0.00137)`: as many decimals as half the interval's width deserves."""
    if estimate is None or not isinstance(estimate, Interval):
        return short(estimate)
    value, low, high = estimate.value, estimate.low, estimate.high
    if not all(map(math.isfinite, (value, low, high))):
        return short(value)
    if high <= low:
        return f"{short(value)} ({short(low)}–{short(high)})"
    half = (high - low) / 2
    decimals = -math.floor(math.log10(half))
    decimals += half * 10**decimals < 3  # a leading 1 or 2 is too coarse alone
    if decimals > 7 or max(abs(low), abs(high)) >= 1e7:
        return f"{value:.2e} ({low:.2e}–{high:.2e})"
    places = max(decimals, 0)
    return f"{value:,.{places}f} ({low:,.{places}f}–{high:,.{places}f})"


def weight_bytes(files: Mapping[str, int]) -> int:
    """The size of a model: the bytes of its weight files, among those that its manifest lists."""
    return sum(n for path, n in files.items() if path.endswith(weight_files()))


def megabytes(size: float | None) -> str:
    """Bytes as MB, which are 10**6 bytes in all that llmopt prints: three significant digits,
    no more than two decimals."""
    if size is None:
        return MISSING
    mega = size / 1e6
    return f"{mega:,.{0 if mega >= 99.95 else 1 if mega >= 9.995 else 2}f}"


def percent(share: float | None) -> str:
    """A share of one as per cent, one decimal; two where it is within 1% of all or nothing."""
    if share is None or not math.isfinite(share):
        return MISSING
    close = 0 < share < 0.01 or 0.99 < share < 1
    return f"{share * 100:.{2 if close else 1}f}%"


def milliseconds(seconds: float | None) -> str:
    """Seconds as milliseconds, three significant digits."""
    return MISSING if seconds is None else short(seconds * 1000)


def heading(metric: MetricSpec) -> str:
    """A metric's name and the unit that `measured` shows it in."""
    unit = {"bytes": "MB", "seconds": "ms", "share": ""}.get(metric.unit, metric.unit)
    return ", ".join(filter(None, (metric.name, unit)))


def measured(metric: MetricSpec, found: Measurement | None) -> str:
    """What a metric was found to be, with its 95% interval where it has one."""
    if found is None:
        return MISSING
    if metric.unit == "share":
        return _share(found)
    if isinstance(found, Interval):
        return interval(found)
    return _IN_UNIT.get(metric.unit, short)(found)


def _share(found: Measurement) -> str:
    text = percent(value_of(found))
    if isinstance(found, Interval) and math.isfinite(found.low) and math.isfinite(found.high):
        text += f" ({percent(found.low)}–{percent(found.high)})"
    return text


_IN_UNIT: dict[str, Callable[[float], str]] = {
    "": partial(short, digits=4),
    "bytes": megabytes,
    "seconds": milliseconds,
}
