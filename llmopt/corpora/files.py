"""Text files and JSON lines, read as (place, value) records; every fault names its line."""

from __future__ import annotations

import codecs
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from llmopt.artifact import JsonObject
from llmopt.corpora.packed import opened
from llmopt.errors import RequestError
from llmopt.specs.base import shortened

Record = tuple[str, Any]
"""Where a value stands, for messages ("data.jsonl:17"), and the value."""

LONGEST = 64_000_000
"""Bytes of a line, or of a JSON value, that are read at once."""

CHAT_FIELDS = ("messages", "conversations", "conversation")
"""Where data sets keep conversations."""
_SHOWN_NAMES = 20


def text(path: Path, limit: int) -> tuple[str, bool]:
    """The whole file, newlines as they are, and whether that is all of it.

    A file of more than `limit` bytes is cut after its last whole line (or character) within them.
    """
    with opened(path) as file:
        data = file.read(limit)
        whole = not file.read(1)
    if not whole and b"\n" in data:
        data = data[: data.rindex(b"\n") + 1]
    try:
        value = codecs.getincrementaldecoder("utf-8")().decode(data, final=whole)
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        raise not_utf8(f"{path}:{line}") from error
    if "\0" in value:
        line = value[: value.index("\0")].count("\n") + 1
        raise not_text(f"{path}:{line}")
    return value.removeprefix("\ufeff"), whole


def lines(path: Path) -> Iterator[str]:
    """The lines of a text, with their ends, as they are asked for."""
    with opened(path) as file:
        number = 0
        while line := file.readline(LONGEST + 1):
            number += 1
            place = f"{path}:{number}"
            if len(line) > LONGEST:
                raise RequestError(f"{place}: a line of more than {LONGEST:,} bytes")
            try:
                decoded = line.decode("utf-8-sig" if number == 1 else "utf-8")
            except UnicodeDecodeError as error:
                raise not_utf8(place) from error
            if "\0" in decoded:
                raise not_text(place)
            yield decoded


def json_lines(path: Path, field: str) -> Iterator[Record]:
    """The value under `field` of every line that is not blank."""
    for number, line in enumerate(lines(path), start=1):
        if line.strip():
            place = f"{path}:{number}"
            record = parsed(line, place, "a .jsonl file holds one JSON object a line")
            if not isinstance(record, dict):
                raise RequestError(
                    f"{place}: not a JSON object", hint=f'expected {{"{field}": "..."}}'
                )
            yield place, member(record, field, place)


def parsed(line: str, place: str, hint: str) -> Any:
    """The JSON value that stands at `place`."""
    try:
        return json.loads(line)
    except json.JSONDecodeError as error:
        at = f"line {error.lineno}, column" if error.lineno > 1 else "column"
        message = f"{place}: not valid JSON ({error.msg} at {at} {error.colno})"
        raise RequestError(message, hint=hint) from error
    except ValueError as error:
        raise RequestError(f"{place}: the JSON has a number of too many digits") from error
    except RecursionError as error:
        raise RequestError(f"{place}: the JSON is nested too deeply") from error


def member(record: JsonObject, field: str, place: str) -> Any:
    """The value of a record's `field`; see `chosen_field`."""
    return record[chosen_field(place, field, list(record))]


def chosen_field(place: str, field: str, names: list[str]) -> str:
    """The name among `names` that `field` asks for.

    Where that is the default, `text`, and there is none, the one that holds conversations.
    RequestError where there is no such name.
    """
    if field in names:
        return field
    chats = [name for name in CHAT_FIELDS if name in names]
    if field == "text" and len(chats) == 1:
        return chats[0]
    there = ", ".join(shortened(str(name), 40) for name in names[:_SHOWN_NAMES]) or "none"
    there += ", ..." if len(names) > _SHOWN_NAMES else ""
    hint = f"set the field to one of: {there}" if names else None
    raise RequestError(f"{place}: no field {field!r} (the fields are: {there})", hint=hint)


def not_utf8(place: str) -> RequestError:
    """The error for bytes in another encoding."""
    return RequestError(f"{place}: not UTF-8 text", hint="convert the file, e.g. with iconv")


def not_text(place: str) -> RequestError:
    """The error for bytes that no text has."""
    return RequestError(
        f"{place}: holds a zero byte, which is no text",
        hint="a file in UTF-16 has them: convert it, e.g. with iconv",
    )
