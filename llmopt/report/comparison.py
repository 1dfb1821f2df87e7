"""What a report is made of: models that may be compared."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from llmopt.model.results import BenchEntry, CorpusName, Document
from llmopt.report.manifest import Manifest
from llmopt.specs.metrics import Metrics


class Machine(Document):
    """What a measurement ran on, and when."""

    processor: str | None = None
    architecture: str | None = None
    system: str | None = None
    cores: int | None = None
    threads: int | None = None
    memory_bytes: int | None = None
    gpus: tuple[str, ...] = ()
    finished: str | None = None
    versions: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True)
class Comparison:
    """Models that may be compared: measured on one text, against one base.

    `speeds`, `manifests` and `machines` have the entries' names.
    """

    corpus: CorpusName | None
    base: str | None
    entries: tuple[BenchEntry, ...]
    speeds: Mapping[str, Metrics]
    manifests: Mapping[str, Manifest]
    machines: Mapping[str, Machine] = field(default_factory=dict)

    @property
    def title(self) -> str:
        """What sets these results apart from others of the same report."""
        against = f"Against {self.base}" if self.base else "Without an original"
        text = self.corpus
        on = f" on {', '.join(filter(None, (text.name, text.amount)))}" if text else ""
        return against + on
