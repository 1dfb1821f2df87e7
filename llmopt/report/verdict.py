"""Which model to ship, by a rule that is written down, and why not the others."""

from __future__ import annotations

import math
from dataclasses import dataclass

from llmopt.report import numbers
from llmopt.report.results import Entry, Results

SAME_SIZE = 1.01
"""Sizes within 1% are one size: file headers alone can make that difference."""

RULE = (
    "Of the models that are smaller than the original and pass all their gates, leave out each "
    "that another beats clearly: at most 1% larger, with its whole 95% KL interval below. Ship "
    "the smallest that is left; among sizes within 1% of it, the one with the lowest mean KL."
)


@dataclass(frozen=True)
class Verdict:
    """The model to ship (None where there is none), one sentence why, and one for each other."""

    ship: Entry | None
    why: str
    others: tuple[tuple[str, str], ...]


def choose(results: Results) -> Verdict:
    """Apply RULE."""
    measured = [entry for entry in results.entries if not entry.is_base]
    base = next((entry for entry in results.entries if entry.is_base), None)
    refusals = {entry.name: _refusal(entry, base) for entry in measured}
    candidates = [entry for entry in measured if not refusals[entry.name]]
    for entry in candidates:
        better = next((other for other in candidates if _beats(other, entry)), None)
        if better:
            refusals[entry.name] = f"{better.name} is as small and clearly better"
    left = [entry for entry in candidates if not refusals[entry.name]]
    if not left:
        others = tuple((name, why) for name, why in refusals.items() if why)
        return Verdict(None, _why_none(measured), others)
    smallest = min(entry.bytes for entry in left)
    ties = [entry for entry in left if entry.bytes <= smallest * SAME_SIZE]
    ship = min(ties, key=lambda entry: (_kl(entry), entry.bytes, entry.name))
    for entry in left:
        size, kl = numbers.megabytes(entry.bytes), numbers.short(_kl(entry))
        relation = "as small" if entry in ties else "larger"
        refusals[entry.name] = f"{relation}: {size} MB, mean KL {kl}"
    others = tuple((name, why or "") for name, why in refusals.items() if name != ship.name)
    return Verdict(ship, _why(ship), others)


def front(entries: list[Entry]) -> list[Entry]:
    """The entries that no other matches in both size and mean KL, from small to large."""
    best: list[Entry] = []
    for entry in sorted(entries, key=lambda entry: (entry.bytes, _kl(entry), entry.name)):
        if not best or _kl(entry) < _kl(best[-1]):
            best.append(entry)
    return best


def has_kl(entry: Entry) -> bool:
    """Whether the mean KL was measured and is finite."""
    return math.isfinite(_kl(entry))


def _kl(entry: Entry) -> float:
    value = entry.kl.mean.value if entry.kl else None
    return math.inf if value is None or math.isnan(value) else value


def _refusal(entry: Entry, base: Entry | None) -> str | None:
    """Why the entry cannot be shipped whatever the others are."""
    failed = [verdict for verdict in entry.gates if not verdict.passed]
    if failed:
        found = "; ".join(f"{v.gate}, measured {numbers.short(v.value)}" for v in failed)
        return f"failed its gate: {found}" if len(failed) == 1 else f"failed its gates: {found}"
    if base and entry.bytes >= base.bytes:
        return "not smaller than the original"
    return None if has_kl(entry) else "no KL to the original was measured"


def _beats(other: Entry, entry: Entry) -> bool:
    """Whether `other` is at most 1% larger and its KL interval lies wholly below."""
    if other.kl is None or entry.kl is None or other.bytes > entry.bytes * SAME_SIZE:
        return False
    high, low = other.kl.mean.high, entry.kl.mean.low
    return high is not None and low is not None and high < low


def _why(ship: Entry) -> str:
    share = f", {numbers.percent(ship.size_ratio)} of the original" if ship.size_ratio else ""
    kl = numbers.interval(ship.kl.mean) if ship.kl else numbers.MISSING
    gates = len(ship.gates)
    if gates == 0:
        passed = "no gate was set for it"
    else:
        passed = "it passes its gate" if gates == 1 else f"it passes its {gates} gates"
    return f"{numbers.megabytes(ship.bytes)} MB{share}; mean KL {kl} nats; {passed}."


def _why_none(measured: list[Entry]) -> str:
    if not measured:
        return "Only the original was measured: there is nothing to choose from."
    if not any(entry.kl for entry in measured):
        return (
            "The loss of quality is not known, because there was no original to compare with: "
            "measure again with --against."
        )
    return "No model may replace the original: each is listed below with its reason."
