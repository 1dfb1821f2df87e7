"""Tables as text: .csv and .tsv, with a header."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from pathlib import Path

from llmopt.corpora.files import LONGEST, Record, chosen_field, lines
from llmopt.errors import RequestError


def rows(path: Path, field: str, delimiter: str) -> Iterator[Record]:
    """The value in the column `field` of every row that is not blank."""
    csv.field_size_limit(LONGEST)  # the library's own limit is a page of text
    numbered = _numbered(path, delimiter)
    place, names = next(numbered, ("", []))
    if not place:
        return
    column = names.index(chosen_field(place, field, names))
    if names.count(names[column]) > 1:
        raise RequestError(f"{place}: two columns are called {names[column]!r}")
    for place, values in numbered:
        if len(values) != len(names):
            raise RequestError(
                f"{place}: the header names {len(names)} columns, and this row has {len(values)}",
                hint="put values that hold commas, tabs or line ends in double quotes",
            )
        yield place, values[column]


def _numbered(path: Path, delimiter: str) -> Iterator[tuple[str, list[str]]]:
    """Rows that are not blank, and the line where each begins."""
    reader = csv.reader(lines(path), delimiter=delimiter, strict=True)
    while True:
        place = f"{path}:{reader.line_num + 1}"
        try:
            values = next(reader, None)
        except csv.Error as error:
            raise RequestError(
                f"{place}: not a valid table ({error})",
                hint='a double quote within a quoted value is written twice: ""',
            ) from error
        if values is None:
            return
        if values:
            yield place, values
