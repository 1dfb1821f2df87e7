"""What a report says, in order: the recommendation first, then the tables."""

from __future__ import annotations

from dataclasses import dataclass

from llmopt.report import manifest_tables, metric_tables
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
        metric_tables.gates(results),
        metric_tables.quality(results, verdict),
        metric_tables.speed(results, verdict),
        manifest_tables.machine(results),
        manifest_tables.ledger(results),
        manifest_tables.largest_errors(results),
        *manifest_tables.settings(results),
        manifest_tables.provenance(results),
        *manifest_tables.versions(results),
    )
    shown = tuple(sheet for sheet in sheets if sheet.rows)
    return Content(results.title, verdict, metric_tables.overview(results, verdict), shown)
