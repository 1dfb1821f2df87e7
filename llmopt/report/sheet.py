"""A table of text: Markdown and HTML lay out the same ones."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

_DIGEST = re.compile(r"\b([0-9a-f]{64})\b")

Mark = Literal["", "ship", "best", "failed", "base"]


@dataclass(frozen=True)
class Column:
    """A heading with its unit; numbers are set flush right, digests in a fixed-width face, and
    words are not broken."""

    heading: str
    kind: Literal["text", "word", "number", "code"] = "text"


@dataclass(frozen=True)
class Row:
    """Cells, one a column; the mark says what the row is about."""

    cells: tuple[str, ...]
    mark: Mark = ""


@dataclass(frozen=True)
class Sheet:
    """A table under a title; `note` explains it in a sentence or two.

    `folded`: evidence that a page shows when it is asked for. `whole`: digests are not shortened.
    """

    title: str
    note: str
    columns: tuple[Column, ...]
    rows: tuple[Row, ...]
    folded: bool = False
    whole: bool = False


def shortened(text: str) -> list[tuple[str, str]]:
    """Pieces of text as (shown, whole): a SHA-256 is shown as its first 12 digits."""
    pieces = []
    for part in _DIGEST.split(text):
        digest = _DIGEST.fullmatch(part)
        pieces.append((f"{part[:12]}…" if digest else part, part))
    return [piece for piece in pieces if piece[1]]
