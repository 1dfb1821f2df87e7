"""The report as Markdown (GitHub's flavour: it renders tables)."""

from __future__ import annotations

import re

from llmopt.report.comparison import Comparison
from llmopt.report.content import Content, content
from llmopt.report.recommendation import RULE
from llmopt.report.sheet import Mark, Sheet, shortened

_SPECIAL = re.compile(r"([\\`*_\[\]<>|#~&$])")
_MARKS: dict[Mark, str] = {
    "": "",
    "ship": " (ship)",
    "best": " (best)",
    "failed": " (failed)",
    "base": " (original)",
}


def render(*comparisons: Comparison) -> str:
    """The whole report, a part for each of what cannot be compared; ends in a newline."""
    lines = [
        line for each in comparisons for line in _part(content(each), several=len(comparisons) > 1)
    ]
    lines += ["## How the choice is made", "", RULE]
    return "\n".join(lines) + "\n"


def _part(what: Content, *, several: bool) -> list[str]:
    lines = [f"# {escape(what.recommendation.headline)}", ""]
    lines += [escape(f"{what.title}."), ""] if several else []
    lines += [escape(what.recommendation.why), ""]
    lines += [line for note in what.recommendation.notes for line in (escape(note), "")]
    lines += _others(what)
    for sheet in (what.overview, *what.evidence):
        lines += [f"## {sheet.title}", ""]
        if sheet.note:
            lines += [escape(sheet.note), ""]
        lines += [*_table(sheet), ""]
    return lines


def escape(text: str) -> str:
    """Text that Markdown and HTML show as it is, on one line."""
    return _SPECIAL.sub(r"\\\1", " ".join(text.split()))


def _others(what: Content) -> list[str]:
    lines = [f"- {escape(name)}: {escape(why)}" for name, why in what.recommendation.others]
    return ["Not chosen:", "", *lines, ""] if lines else []


def _table(sheet: Sheet) -> list[str]:
    rules = ["---:" if column.kind == "number" else ":---" for column in sheet.columns]
    lines = [_row([column.heading for column in sheet.columns]), f"| {' | '.join(rules)} |"]
    for row in sheet.rows:
        first, *rest = row.cells if sheet.whole else map(_short, row.cells)
        lines.append(_row([first + _MARKS[row.mark], *rest]))
    return lines


def _short(text: str) -> str:
    return "".join(shown for shown, _ in shortened(text))


def _row(cells: list[str]) -> str:
    return f"| {' | '.join(map(escape, cells))} |"
