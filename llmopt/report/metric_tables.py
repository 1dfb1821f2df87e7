"""Tables of what was measured: the overview, quality in full, speed, gates."""

from __future__ import annotations

from llmopt.model.results import BenchEntry
from llmopt.report import numbers
from llmopt.report.comparison import Comparison
from llmopt.report.quality import class_of
from llmopt.report.recommendation import Recommendation
from llmopt.report.sheet import Column, Mark, Row, Sheet
from llmopt.specs.metrics import METRICS, PROBES, Metrics, MetricSpec, value_of

_OVERVIEW = (
    "size.bytes", "size.ratio", "kl.mean", "agreement", "perplexity", "speed.decode",
    "bits_per_weight",
)  # fmt: skip
#: the one whose interval the overview shows, too
_DECIDES = "kl.mean"
#: what the overview does not show in full
_QUALITY = tuple(
    metric.name
    for probe in PROBES.values()
    for metric in probe.metrics
    if not probe.alone
    if metric.name not in _OVERVIEW or (metric.interval and metric.name != _DECIDES)
)


def mark_of(entry: BenchEntry, recommended: Recommendation) -> Mark:
    """What to say about a model at a glance."""
    if entry.is_base:
        return "base"
    if recommended.ship is not None and entry.name == recommended.ship.name:
        return recommended.word
    return "" if entry.passed else "failed"


def gates_passed(entry: BenchEntry) -> str:
    """`2 of 2`, or a dash for a model without gates."""
    passed = sum(verdict.passed for verdict in entry.gates)
    return f"{passed} of {len(entry.gates)}" if entry.gates else numbers.MISSING


def overview(comparison: Comparison, recommended: Recommendation) -> Sheet:
    """What decides: without the ends of intervals, but for the divergence's."""
    metrics = [METRICS[name] for name in _OVERVIEW]
    columns = (
        Column("Model"),
        Column("Quality", "word"),
        *(_column(metric, ends=metric.name == _DECIDES) for metric in metrics),
        Column("Gates passed", "number"),
        Column("Format"),
    )
    rows = []
    for entry in comparison.entries:
        found = {**entry.metrics, **comparison.speeds.get(entry.name, {})}
        cells = (
            entry.name,
            class_of(entry) or numbers.MISSING,
            *(_cell(metric, found, ends=metric.name == _DECIDES) for metric in metrics),
            gates_passed(entry),
            ", ".join(filter(None, (entry.format or numbers.MISSING, entry.engine))),
        )
        rows.append(Row(cells, mark_of(entry, recommended)))
    return Sheet("Results", _corpus_note(comparison), columns, tuple(rows))


def _column(metric: MetricSpec, *, ends: bool = True) -> Column:
    interval = " (95% interval)" if metric.interval and ends else ""
    return Column(f"{numbers.heading(metric)}{interval}", "number")


def _cell(metric: MetricSpec, found: Metrics, *, ends: bool = True) -> str:
    measurement = found.get(metric.name)
    if measurement is not None and not ends:
        measurement = value_of(measurement)
    return numbers.measured(metric, measurement)


def _corpus_note(comparison: Comparison) -> str:
    corpus = comparison.corpus
    if corpus is None:
        return ""
    where = ": ".join(filter(None, (f"Measured on {corpus.name}", corpus.amount)))
    return f"{where}, the same for every model. Sizes are of the weight files; 1 MB is 10⁶ bytes."


def quality(comparison: Comparison, recommended: Recommendation) -> Sheet:
    """All that was measured of quality; intervals are those of a bootstrap over windows."""
    shown = [METRICS[name] for name in _QUALITY]
    rows = [
        Row(
            (entry.name, *(_cell(metric, entry.metrics) for metric in shown)),
            mark_of(entry, recommended),
        )
        for entry in comparison.entries
    ]
    note = (
        "kl is the divergence of a model's next-token distribution from the original's, in nats; "
        "flips are shares of positions where the top token changed: lost, from right to wrong; "
        "gained, from wrong to right; changed, from wrong to wrong. Intervals come from a "
        "bootstrap over windows, ratios are paired."
    )
    columns = (Column("Model"), *map(_column, shown))
    return Sheet("Quality in full", note, columns, tuple(rows))


def speed(comparison: Comparison, recommended: Recommendation) -> Sheet:
    """What each model did alone, on the machine that is named with it."""
    shown = PROBES["speed"].metrics
    rows = [
        Row(
            (entry.name, *(_cell(metric, comparison.speeds[entry.name]) for metric in shown)),
            mark_of(entry, recommended),
        )
        for entry in comparison.entries
        if entry.name in comparison.speeds
    ]
    note = (
        "Each model alone in a process of its own, on the machine named below. Loaded and peak "
        "memory are those of the whole process, Python and its libraries included."
    )
    if any(entry.runtime == "llama.cpp" for entry in comparison.entries):
        note += " llama.cpp ran without repacked weights."
    return Sheet("Speed", note, (Column("Model"), *map(_column, shown)), tuple(rows))


def gates(comparison: Comparison) -> Sheet:
    rows = [
        Row(
            (
                entry.name,
                gate.gate,
                "default, against collapse" if gate.default else "the recipe",
                numbers.short(gate.value),
                (gate.corpus.amount if gate.corpus else "") or numbers.MISSING,
                "pass" if gate.passed else "FAIL",
            ),
            "" if gate.passed else "failed",
        )
        for entry in comparison.entries
        for gate in entry.gates
    ]
    columns = (
        Column("Model"),
        Column("Gate"),
        Column("Set by"),
        Column("Measured", "number"),
        Column("On"),
        Column("Verdict"),
    )
    passed = all(entry.passed for entry in comparison.entries)
    return Sheet("Gates", "", columns, tuple(rows), folded=passed)
