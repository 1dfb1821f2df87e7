"""A table of text: Markdown and HTML lay out the same ones."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Mark = Literal["", "ship", "failed", "base"]


@dataclass(frozen=True)
class Column:
    """A heading with its unit; numbers are set flush right, digests in a fixed-width face."""

    heading: str
    kind: Literal["text", "number", "code"] = "text"


@dataclass(frozen=True)
class Row:
    """Cells, one a column; the mark says what the row is about."""

    cells: tuple[str, ...]
    mark: Mark = ""


@dataclass(frozen=True)
class Sheet:
    """A table under a title; `note` explains it in a sentence or two."""

    title: str
    note: str
    columns: tuple[Column, ...]
    rows: tuple[Row, ...]
