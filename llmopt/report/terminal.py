"""The results as a table for a terminal of 100 columns."""

from __future__ import annotations

from rich import box
from rich.table import Table
from rich.text import Text

from llmopt.report import numbers
from llmopt.report.measured import gates_passed, mark_of
from llmopt.report.quality import class_of
from llmopt.report.results import Entry, Results
from llmopt.report.sheet import Mark
from llmopt.report.verdict import Verdict, choose

_STYLES: dict[Mark, str] = {
    "": "", "ship": "bold green", "best": "bold", "failed": "red", "base": "dim",
}  # fmt: skip
_SIGNS: dict[Mark, str] = {"": "  ", "ship": "→ ", "best": "→ ", "failed": "× ", "base": "  "}
_COLUMNS = ("MB", "mean KL (95%)", "top-1", "ppl", "tok/s", "gates", "quality")


def table(results: Results) -> Table:
    """One row a model: an arrow marks the recommended one, a cross one that failed a gate."""
    verdict = choose(results)
    made = Table(
        box=box.SIMPLE_HEAD, pad_edge=False, collapse_padding=True, caption=caption(verdict)
    )
    made.caption_justify = "left"
    made.add_column("  model", min_width=16, max_width=24, overflow="fold")
    for heading in _COLUMNS:
        made.add_column(heading, justify="right", no_wrap=True)
    for entry in results.entries:
        mark = mark_of(entry, verdict)
        name = "\n  ".join(filter(None, (entry.name, entry.engine)))
        title = Text(_SIGNS[mark] + name)  # Text: a name is never read as rich's markup
        made.add_row(title, *_cells(entry, results), style=_STYLES[mark])
    return made


def caption(verdict: Verdict) -> Text:
    """The recommendation, and what its neighbours would cost or gain."""
    subject = f"→ {verdict.word} {verdict.ship.name}: " if verdict.ship else ""
    return Text("\n".join((subject + verdict.why, *verdict.notes)), style="")


def _cells(entry: Entry, results: Results) -> list[str]:
    speed = results.speed.get(entry.name)
    return [
        numbers.megabytes(entry.bytes),
        numbers.interval(entry.kl.mean if entry.kl else None),
        numbers.percent(entry.agreement.value if entry.agreement else None),
        numbers.perplexity(entry.perplexity.value if entry.perplexity else None),
        numbers.short(speed.decode_tokens_per_s if speed else None),
        gates_passed(entry).replace(" of ", "/"),
        class_of(entry) or numbers.MISSING,
    ]
