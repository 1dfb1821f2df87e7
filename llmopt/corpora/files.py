"""Text files and JSON lines, read as (place, value) records; every fault names its line."""

from __future__ import annotations

import codecs
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from llmopt.errors import RequestError

Record = tuple[str, Any]
"""Where a value stands, for messages ("data.jsonl:17"), and the value."""


def text(path: Path, limit: int) -> Iterator[Record]:
    """The whole file as one record, newlines as they are.

    A file of more than `limit` bytes is cut after its last whole line (or character) within them.
    """
    with path.open("rb") as file:
        data = file.read(limit)
        whole = not file.read(1)
    if not whole and b"\n" in data:
        data = data[: data.rindex(b"\n") + 1]
    try:
        value = codecs.getincrementaldecoder("utf-8")().decode(data, final=whole)
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        raise _not_utf8(f"{path}:{line}") from error
    yield str(path), value.removeprefix("\ufeff")


def json_lines(path: Path, field: str) -> Iterator[Record]:
    """The value under `field` of every line that is not blank."""
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            place = f"{path}:{number}"
            try:
                decoded = line.decode("utf-8-sig" if number == 1 else "utf-8")
            except UnicodeDecodeError as error:
                raise _not_utf8(place) from error
            if decoded.strip():
                yield place, _member(decoded, field, place)


def _member(line: str, field: str, place: str) -> object:
    try:
        record = json.loads(line)
    except json.JSONDecodeError as error:
        raise RequestError(
            f"{place}: not valid JSON ({error.msg} at column {error.colno})",
            hint="a .jsonl file holds one JSON object a line",
        ) from error
    except RecursionError as error:
        raise RequestError(f"{place}: the JSON is nested too deeply") from error
    if not isinstance(record, dict):
        raise RequestError(f"{place}: not a JSON object", hint=f'expected {{"{field}": "..."}}')
    if field not in record:
        raise missing_field(place, field, list(record))
    return record[field]


def missing_field(place: str, field: str, names: list[str]) -> RequestError:
    """The error for a record or table that lacks `field` and has `names`."""
    there = ", ".join(names) or "none"
    hint = f"set the field to one of: {there}" if names else None
    return RequestError(f"{place}: no field {field!r} (the fields are: {there})", hint=hint)


def _not_utf8(place: str) -> RequestError:
    return RequestError(f"{place}: not UTF-8 text", hint="convert the file, e.g. with iconv")
