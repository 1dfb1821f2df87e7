"""Tables of what was measured: the overview, quality in full, speed, gates."""

from __future__ import annotations

from llmopt.report import numbers
from llmopt.report.quality import class_of
from llmopt.report.results import Divergence, Entry, Flips, Results
from llmopt.report.sheet import Column, Mark, Row, Sheet
from llmopt.report.verdict import Verdict


def mark_of(entry: Entry, verdict: Verdict) -> Mark:
    """What to say about a model at a glance."""
    if entry.is_base:
        return "base"
    if verdict.ship is not None and entry.name == verdict.ship.name:
        return verdict.word
    return "" if entry.passed else "failed"


def gates_passed(entry: Entry) -> str:
    """`2 of 2`, or a dash for a model without gates."""
    passed = sum(verdict.passed for verdict in entry.gates)
    return f"{passed} of {len(entry.gates)}" if entry.gates else numbers.MISSING


def overview(results: Results, verdict: Verdict) -> Sheet:
    columns = (
        Column("Model"),
        Column("Quality", "word"),
        Column("Size, MB", "number"),
        Column("Of the original", "number"),
        Column("Mean KL, nats (95% interval)", "number"),
        Column("Same top token", "number"),
        Column("Perplexity", "number"),
        Column("Decode, tokens/s", "number"),
        Column("Gates passed", "number"),
        Column("Bits per weight", "number"),
        Column("Format"),
    )
    rows = []
    for entry in results.entries:
        speed = results.speed.get(entry.name)
        cells = (
            entry.name,
            class_of(entry) or numbers.MISSING,
            numbers.megabytes(entry.bytes),
            numbers.percent(entry.size_ratio),
            numbers.interval(entry.kl.mean if entry.kl else None),
            numbers.percent(entry.agreement.value if entry.agreement else None),
            numbers.perplexity(entry.perplexity.value if entry.perplexity else None),
            numbers.short(speed.decode_tokens_per_s if speed else None),
            gates_passed(entry),
            numbers.short(entry.bits_per_weight),
            ", ".join(filter(None, (entry.format or numbers.MISSING, entry.engine))),
        )
        rows.append(Row(cells, mark_of(entry, verdict)))
    return Sheet("Results", _corpus_note(results), columns, tuple(rows))


def _corpus_note(results: Results) -> str:
    corpus = results.corpus
    if corpus is None:
        return ""
    where = ": ".join(filter(None, (f"Measured on {corpus.name}", corpus.amount)))
    return f"{where}, the same for every model. Sizes are of the weight files; 1 MB is 10⁶ bytes."


def quality(results: Results, verdict: Verdict) -> Sheet:
    columns = (
        Column("Model"),
        Column("Perplexity (95% interval)", "number"),
        Column("Perplexity ratio (95% interval)", "number"),
        Column("Median KL", "number"),
        Column("KL p99", "number"),
        Column("KL p99.9", "number"),
        Column("Largest KL", "number"),
        Column("Right to wrong", "number"),
        Column("Wrong to right", "number"),
        Column("Wrong to wrong", "number"),
    )
    rows = []
    for entry in results.entries:
        kl, flips = entry.kl or Divergence(), entry.flips or Flips()
        cells = (
            entry.name,
            numbers.interval(entry.perplexity),
            numbers.interval(entry.perplexity_ratio),
            *map(numbers.short, (kl.median, kl.p99, kl.p99_9, kl.max)),
            *map(numbers.percent, (flips.lost, flips.gained, flips.changed)),
        )
        rows.append(Row(cells, mark_of(entry, verdict)))
    note = (
        "KL is the divergence of a model's next-token distribution from the original's, in nats; "
        "the last three columns are shares of positions where the top token changed. Intervals "
        "come from a bootstrap over windows, ratios are paired."
    )
    return Sheet("Quality in full", note, columns, tuple(rows))


def speed(results: Results, verdict: Verdict) -> Sheet:
    columns = (
        Column("Model"),
        Column("First token, ms", "number"),
        Column("Prefill, tokens/s", "number"),
        Column("Decode, tokens/s", "number"),
        Column("Token p50, ms", "number"),
        Column("Token p95, ms", "number"),
        Column("Weights in memory, MB", "number"),
        Column("Loaded, MB", "number"),
        Column("Peak memory, MB", "number"),
    )
    rows = []
    for entry in results.entries:
        speed = results.speed.get(entry.name)
        if speed is None:
            continue
        cells = (
            entry.name,
            numbers.milliseconds(speed.first_token_s),
            numbers.short(speed.prefill_tokens_per_s),
            numbers.short(speed.decode_tokens_per_s),
            numbers.milliseconds(speed.token_p50_s),
            numbers.milliseconds(speed.token_p95_s),
            *map(numbers.megabytes, (speed.weight_bytes, speed.loaded_bytes, speed.peak_bytes)),
        )
        rows.append(Row(cells, mark_of(entry, verdict)))
    note = (
        "Each model alone in a process of its own, on the machine named below. Loaded and peak "
        "memory are those of the whole process, Python and its libraries included."
    )
    if any(entry.runtime == "llama.cpp" for entry in results.entries):
        note += " llama.cpp ran without repacked weights."
    return Sheet("Speed", note, columns, tuple(rows))


def gates(results: Results) -> Sheet:
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
        for entry in results.entries
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
    passed = all(entry.passed for entry in results.entries)
    return Sheet("Gates", "", columns, tuple(rows), folded=passed)
