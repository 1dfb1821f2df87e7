"""Limits in the documentation are those in the code."""

from __future__ import annotations

import re
from pathlib import Path

from llmopt.evaluate import gates
from llmopt.report.quality import CLASSES
from llmopt.specs.metrics import METRICS
from llmopt.verbs.bench.plan import GATE_WINDOWS

DOCS = Path(__file__).parents[1] / "docs"


def rows(page: str, first: str) -> list[list[str]]:
    """The body of the table whose first heading is `first`."""
    text = (DOCS / page).read_text("utf-8")
    (table,) = re.findall(
        rf"^\| {re.escape(first)} \|.*\n\|[-|]*\n((?:\|.*\n)+)", text, re.MULTILINE
    )
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines()]


def test_the_default_gate() -> None:
    found = {}
    for bits, *limits in rows("quantize.md", "bits of the codes"):
        kl, gain, offset = map(float, limits)
        found[int(bits)] = (kl, gain)
        stated = {
            gate.metric: gate.limit for gate in gates.default_gates(int(bits), fewest=int(bits))
        }
        assert stated == {"kl.mean": kl, "weights.gain": gain, "weights.offset": offset}
    assert found == gates._SOUND
    assert f"on {GATE_WINDOWS} windows" in (DOCS / "quantize.md").read_text("utf-8")


def test_the_classes_of_quality() -> None:
    stated = {
        name: (float(kl), float(share.rstrip("%")) / 100)
        for name, kl, share, _ in rows("bench.md", "class")[:-1]
    }
    assert stated == {c.name: (c.largest_kl, c.least_agreement) for c in CLASSES}


def test_the_metrics() -> None:
    stated = [
        row for first in ("metric", "metric of the machine") for row in rows("bench.md", first)
    ]
    declared = [
        [
            f"`{metric.name}`" + (", `.low`, `.high`" if metric.interval else ""),
            metric.unit,
            metric.better,
            metric.summary,
        ]
        for metric in METRICS.values()
    ]
    assert stated == declared
