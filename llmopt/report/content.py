"""What a report says, in order: the recommendation first, then the tables."""

from __future__ import annotations

from dataclasses import dataclass

from llmopt.report import measured, recorded
from llmopt.report.results import Results
from llmopt.report.sheet import Sheet
from llmopt.report.verdict import Verdict, choose


@dataclass(frozen=True)
class Content:
    """The same for every layout. `evidence` has the tables that are not empty."""

    title: str
    verdict: Verdict
    overview: Sheet
    evidence: tuple[Sheet, ...]


def content(results: Results) -> Content:
    """Decide and tabulate."""
    verdict = choose(results)
    sheets = (
        measured.gates(results),
        measured.quality(results, verdict),
        measured.speed(results, verdict),
        recorded.machine(results),
        recorded.ledger(results),
        recorded.largest_errors(results),
        *recorded.settings(results),
        recorded.provenance(results),
        *recorded.versions(results),
    )
    shown = tuple(sheet for sheet in sheets if sheet.rows)
    return Content(results.title, verdict, measured.overview(results, verdict), shown)
