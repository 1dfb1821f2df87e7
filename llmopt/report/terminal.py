"""The results as a table for a terminal: whole in 100 columns, the figures that decide in 80."""

from __future__ import annotations

from rich import box
from rich.table import Table
from rich.text import Text

from llmopt.model.results import BenchEntry
from llmopt.report import numbers
from llmopt.report.comparison import Comparison
from llmopt.report.metric_tables import gates_passed, mark_of
from llmopt.report.quality import class_of
from llmopt.report.recommendation import Recommendation, choose
from llmopt.report.sheet import Mark
from llmopt.specs.metrics import value_of

_STYLES: dict[Mark, str] = {
    "": "", "ship": "bold green", "best": "bold", "failed": "red", "base": "dim",
}  # fmt: skip
_SIGNS: dict[Mark, str] = {"": "  ", "ship": "→ ", "best": "→ ", "failed": "× ", "base": "  "}
_COLUMNS = ("MB", "kl.mean (95%)", "agreement", "perplexity", "tok/s", "gates", "quality")
#: what a narrow terminal does without, the first first
_LEFT_OUT = ("tok/s", "perplexity", "gates")
_NAME, _LONGEST_NAME, _GAP = 16, 24, 2


def table(comparison: Comparison, width: int = 100) -> Table:
    """One row a model: an arrow marks the recommended one, a cross one that failed a gate."""
    recommended = choose(comparison)
    rows = [_cells(entry, comparison) for entry in comparison.entries]
    columns, name = _fitting(rows, max(len(e.name) + 2 for e in comparison.entries), width)
    below = caption(recommended)
    if missing := [column for column in _COLUMNS if column not in columns]:
        below.append(f"\nA wider terminal shows {', '.join(missing)}, too.")
    made = Table(box=box.SIMPLE_HEAD, pad_edge=False, collapse_padding=True, caption=below)
    made.caption_justify = "left"
    # a width of its own: what is too wide would be taken from the names first
    made.add_column("  model", width=name, overflow="fold")
    for column in columns:
        made.add_column(column, justify="right", no_wrap=True)
    for entry, row in zip(comparison.entries, rows, strict=True):
        mark = mark_of(entry, recommended)
        called = "\n  ".join(filter(None, (entry.name, entry.engine)))
        title = Text(_SIGNS[mark] + called)  # Text: a name is never read as rich's markup
        made.add_row(title, *(row[column] for column in columns), style=_STYLES[mark])
    return made


def _fitting(rows: list[dict[str, str]], longest: int, width: int) -> tuple[list[str], int]:
    """The columns that there is room for, and the width of the models' names."""
    name, columns = max(_NAME, min(longest, _LONGEST_NAME)), list(_COLUMNS)
    for least in (None, *_LEFT_OUT):
        if least is not None:
            columns.remove(least)
        taken = sum(_GAP + max(len(c), *(len(row[c]) for row in rows)) for c in columns)
        if taken + name + _GAP <= width:
            break
    return columns, max(_NAME, min(name, width - taken - _GAP))


def caption(recommended: Recommendation) -> Text:
    """The recommendation, and what its neighbours would cost or gain."""
    subject = f"→ {recommended.word} {recommended.ship.name}: " if recommended.ship else ""
    return Text("\n".join((subject + recommended.why, *recommended.notes)), style="")


def _cells(entry: BenchEntry, comparison: Comparison) -> dict[str, str]:
    speed = comparison.speeds.get(entry.name, {}).get("speed.decode")
    cells = (
        numbers.megabytes(entry.bytes),
        numbers.interval(entry.metrics.get("kl.mean")),
        numbers.percent(entry.value("agreement")),
        numbers.short(entry.value("perplexity"), 4),
        numbers.short(None if speed is None else value_of(speed)),
        gates_passed(entry).replace(" of ", "/"),
        class_of(entry) or numbers.MISSING,
    )
    return dict(zip(_COLUMNS, cells, strict=True))
