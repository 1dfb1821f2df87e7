"""Which model to ship, by a rule that is written down, and why not the others."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from pydantic import JsonValue

from llmopt.model.results import BenchEntry
from llmopt.report import numbers
from llmopt.report.comparison import Comparison
from llmopt.report.quality import DAMAGED, NEAR_LOSSLESS, STATED, class_of
from llmopt.specs.metrics import Interval, ends_of

SAME_SIZE = 1.01
"""Sizes within 1% are one size: file headers alone can make that difference."""

RULE = (
    "Of the models that are smaller than the original and pass all their gates, leave out each "
    "that another beats clearly: at most 1% larger, with its whole 95% KL interval below. Where "
    "all of them had to pass gates on quality that you set, ship the smallest that is left. "
    "Where not, recommend the smallest near-lossless one; if there is none, the best: the "
    "smallest whose KL interval reaches down to the lowest; nothing if that is damaged. Among "
    "sizes within 1% of the smallest, take the one with the lowest mean KL. The default gate "
    "looks for collapse and says nothing of quality. Classes, each limit held to the worse end "
    f"of the 95% interval: {STATED}"
)
#: gates on these say something of how good a model is
_QUALITY = ("kl", "agreement", "flips", "perplexity")


@dataclass(frozen=True)
class Recommendation:
    """The model to ship (None where there is none), why, and a sentence for each other.

    word: "ship" where its quality is enough, "best" where it is only the best there is.
    notes: what the next smaller model would cost, and the next larger one gain.
    """

    ship: BenchEntry | None
    why: str
    others: tuple[tuple[str, str], ...] = ()
    word: Literal["ship", "best"] = "ship"
    notes: tuple[str, ...] = ()

    @property
    def headline(self) -> str:
        if self.ship is None:
            return "Nothing to ship"
        if self.word == "ship":
            return f"Ship {self.ship.name}"
        return f"Best: {self.ship.name} ({class_of(self.ship)})"

    def document(self) -> dict[str, JsonValue]:
        """For machines: `recommended` is null where no model may replace the original."""
        return {
            "recommended": self.ship.name if self.ship else None,
            "class": class_of(self.ship) if self.ship else None,
            "headline": self.headline,
            "why": self.why,
            "notes": list(self.notes),
            "others": dict(self.others),
        }


def choose(comparison: Comparison) -> Recommendation:
    """Apply RULE."""
    measured = [entry for entry in comparison.entries if not entry.is_base]
    base = next((entry for entry in comparison.entries if entry.is_base), None)
    refusals = {entry.name: _refusal(entry, base) for entry in measured}
    candidates = [entry for entry in measured if not refusals[entry.name]]
    for entry in candidates:
        better = next((other for other in candidates if _beats(other, entry)), None)
        if better:
            refusals[entry.name] = f"{better.name} is as small and clearly better"
    left = [entry for entry in candidates if not refusals[entry.name]]
    gated = bool(left) and all(map(_judged, left))
    ship, word = _pick(left, gated=gated)
    for entry in left:
        refusals[entry.name] = _described(entry, ship)
    others = tuple(
        (name, why or "") for name, why in refusals.items() if ship is None or name != ship.name
    )
    if ship is None:
        return Recommendation(None, _why_none(measured, left), others)
    return Recommendation(ship, _why(ship, word), others, word, _neighbours(ship, measured))


def front(entries: list[BenchEntry]) -> list[BenchEntry]:
    """The entries that no other matches in both size and mean KL, from small to large."""
    best: list[BenchEntry] = []
    for entry in sorted(entries, key=lambda entry: (entry.bytes, _kl(entry), entry.name)):
        if not best or _kl(entry) < _kl(best[-1]):
            best.append(entry)
    return best


def has_kl(entry: BenchEntry) -> bool:
    """Whether the mean KL was measured and is finite."""
    return math.isfinite(_kl(entry))


def _pick(
    left: list[BenchEntry], *, gated: bool
) -> tuple[BenchEntry | None, Literal["ship", "best"]]:
    """The model to ship among those that are not ruled out, or the best there is."""
    if not left:
        return None, "ship"
    if gated:
        return _smallest(left), "ship"
    if near := [entry for entry in left if class_of(entry) == NEAR_LOSSLESS.name]:
        return _smallest(near), "ship"
    lowest = min(left, key=_kl)
    reach = ends_of(lowest.metrics["kl.mean"])[1]
    best = _smallest([each for each in left if ends_of(each.metrics["kl.mean"])[0] <= reach])
    return (None if class_of(best) == DAMAGED else best), "best"


def _smallest(entries: list[BenchEntry]) -> BenchEntry:
    """The smallest; among sizes within 1% of it, the one with the lowest mean KL."""
    smallest = min(entry.bytes for entry in entries)
    ties = [entry for entry in entries if entry.bytes <= smallest * SAME_SIZE]
    return min(ties, key=lambda entry: (_kl(entry), entry.bytes, entry.name))


def _judged(entry: BenchEntry) -> bool:
    """Whether the user set a limit to the loss of quality; size alone is none."""
    return any(not v.default and v.gate.startswith(_QUALITY) for v in entry.gates)


def _kl(entry: BenchEntry) -> float:
    value = entry.value("kl.mean")
    return math.inf if value is None or math.isnan(value) else value


def _refusal(entry: BenchEntry, base: BenchEntry | None) -> str | None:
    """Why the entry cannot be shipped whatever the others are."""
    failed = [verdict for verdict in entry.gates if not verdict.passed]
    if failed:
        found = "; ".join(f"{v.gate}, measured {numbers.short(v.value)}{v.on}" for v in failed)
        return f"failed its gate: {found}" if len(failed) == 1 else f"failed its gates: {found}"
    if base and entry.bytes >= base.bytes:
        return "not smaller than the original"
    if entry.value("kl.mean") is None:
        return "no KL to the original was measured"
    return None if has_kl(entry) else "its KL to the original is not finite: it is broken"


def _beats(other: BenchEntry, entry: BenchEntry) -> bool:
    """Whether `other` is at most 1% larger and its KL interval lies wholly below."""
    ours, theirs = entry.metrics.get("kl.mean"), other.metrics.get("kl.mean")
    if not isinstance(ours, Interval) or not isinstance(theirs, Interval):
        return False
    return other.bytes <= entry.bytes * SAME_SIZE and theirs.high < ours.low


def _described(entry: BenchEntry, ship: BenchEntry | None) -> str:
    """Size and quality, and how the size compares with that of the model to ship."""
    relation = ""
    if ship is not None:
        larger = "larger" if entry.bytes > ship.bytes else "smaller"
        ratio = max(entry.bytes, ship.bytes) / max(min(entry.bytes, ship.bytes), 1)
        relation = "as small: " if ratio <= SAME_SIZE else f"{larger}: "
    kl, size = numbers.short(_kl(entry)), numbers.megabytes(entry.bytes)
    return ", ".join(filter(None, (f"{relation}{size} MB", f"mean KL {kl}", class_of(entry))))


def _neighbours(ship: BenchEntry, measured: list[BenchEntry]) -> tuple[str, ...]:
    """What the next smaller model would cost, and the next larger one gain."""
    known = [entry for entry in measured if has_kl(entry)]
    smaller = front([e for e in known if e.bytes * SAME_SIZE < ship.bytes])
    larger = [e for e in known if e.bytes > ship.bytes * SAME_SIZE and _kl(e) < _kl(ship)]
    notes = [_neighbour("Next smaller", smaller[-1], ship)] if smaller else []
    if larger:
        notes.append(_neighbour("Next larger", front(larger)[0], ship))
    near = [entry for entry in larger if class_of(entry) == NEAR_LOSSLESS.name and entry.passed]
    if near and class_of(ship) != NEAR_LOSSLESS.name and _smallest(near) != front(larger)[0]:
        notes.append(_neighbour("Smallest near-lossless", _smallest(near), ship))
    return tuple(notes)


def _neighbour(which: str, entry: BenchEntry, ship: BenchEntry) -> str:
    change = numbers.percent(abs(entry.bytes / ship.bytes - 1))
    relation = "smaller" if entry.bytes < ship.bytes else "larger"
    size = f"{numbers.megabytes(entry.bytes)} MB, {change} {relation}"
    parts = [f"{which}: {entry.name} ({size})", _times(_kl(entry), _kl(ship))]
    parts += _same_top_token(entry)
    said = ", ".join(parts) + (f": {found}" if (found := class_of(entry)) else "")
    return f"{said}{'' if entry.passed else '; it failed a gate'}."


def _same_top_token(entry: BenchEntry) -> list[str]:
    agreement = entry.value("agreement")
    known = agreement is not None and math.isfinite(agreement)
    return [f"{numbers.percent(agreement)} same top token"] if known else []


def _times(kl: float, reference: float) -> str:
    """`4.0 times the divergence`, `0.69 times ...`, `1/240 of the divergence`."""
    if min(kl, reference) <= 0:
        return f"mean KL {numbers.short(kl)}"
    if kl >= 0.1 * reference:
        return f"{numbers.short(kl / reference, 2)} times the divergence"
    return f"1/{numbers.short(reference / kl, 2)} of the divergence"


def _why(ship: BenchEntry, word: str) -> str:
    ratio = ship.value("size.ratio")
    share = f", {numbers.percent(ratio)} of the original" if ratio else ""
    kl = f"mean KL {numbers.interval(ship.metrics.get('kl.mean'))} nats"
    quality = ", ".join((kl, *_same_top_token(ship)))
    if found := class_of(ship):
        quality = f"{found}: {quality}"
    text = f"{numbers.megabytes(ship.bytes)} MB{share}; {quality}; {_gates(ship)}."
    return f"No model is near-lossless; this is the best. {text}" if word == "best" else text


def _gates(ship: BenchEntry) -> str:
    own = [verdict.gate for verdict in ship.gates if not verdict.default]
    if own:
        return f"it passes {'the gate' if len(own) == 1 else 'the gates'} {', '.join(own)}"
    if ship.gates:
        return "no gate on quality was set (the default one looks for collapse)"
    return "no gate was set for it"


def _why_none(measured: list[BenchEntry], left: list[BenchEntry]) -> str:
    if not measured:
        return "Only the original was measured: there is nothing to choose from."
    if not any(entry.value("kl.mean") is not None for entry in measured):
        return (
            "The loss of quality is not known, because there was no original to compare with: "
            "measure again with --against."
        )
    if left:
        return (
            f"Even the best, {min(left, key=_kl).name}, is {DAMAGED}: no model may replace the "
            "original."
        )
    return "No model may replace the original: each is listed below with its reason."
