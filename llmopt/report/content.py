"""What a report says, in order: the recommendation first, then the tables."""

from __future__ import annotations

from dataclasses import dataclass

from llmopt.report import manifest_tables, metric_tables
from llmopt.report.comparison import Comparison
from llmopt.report.recommendation import Recommendation, choose
from llmopt.report.sheet import Sheet


@dataclass(frozen=True)
class Content:
    """The same for every layout. `evidence` has the tables that are not empty."""

    title: str
    recommendation: Recommendation
    overview: Sheet
    evidence: tuple[Sheet, ...]


def content(comparison: Comparison) -> Content:
    """Decide and tabulate."""
    recommendation = choose(comparison)
    sheets = (
        metric_tables.gates(comparison),
        metric_tables.quality(comparison, recommendation),
        metric_tables.speed(comparison, recommendation),
        manifest_tables.machine(comparison),
        manifest_tables.ledger(comparison),
        manifest_tables.largest_errors(comparison),
        *manifest_tables.settings(comparison),
        manifest_tables.provenance(comparison),
        *manifest_tables.versions(comparison),
    )
    shown = tuple(sheet for sheet in sheets if sheet.rows)
    return Content(
        comparison.title, recommendation, metric_tables.overview(comparison, recommendation), shown
    )
