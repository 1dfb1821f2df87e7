"""A .json file: a list of texts, objects or conversations, or an object that holds such a list.

A list is read piece by piece, so its length does not matter; an object is read whole.
"""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

from llmopt.artifact import JsonObject
from llmopt.corpora.files import (
    LONGEST,
    Record,
    chosen_field,
    json_lines,
    member,
    not_utf8,
    parsed,
)
from llmopt.corpora.packed import opened
from llmopt.errors import RequestError

_CHUNK = 1 << 16
_SPACE = re.compile(r"[ \t\r\n]*")
_DECODER = json.JSONDecoder()
#: an error so near the end of what was read may be for want of the rest
_TAIL = 16
_HINT = "a .json file holds a list of texts, of objects or of conversations"


def records(path: Path, field: str) -> Iterator[Record]:
    """The texts or conversations in the file, those of objects under `field`."""
    with opened(path) as file:
        reader = _Reader(path, file)
        first = reader.peek()
        if first == "[":
            yield from _members(path, reader.items(), field)
            return
        if first != "{":
            raise RequestError(f"{path}: neither a JSON list nor an object", hint=_HINT)
        lined = reader.is_lines()
        content = "" if lined else reader.whole()
    if lined:
        yield from json_lines(path, field)
    else:
        yield from _of_object(path, parsed(content, str(path), _HINT), field)


def _of_object(path: Path, found: JsonObject, field: str) -> Iterator[Record]:
    """What an object holds: one record, columns of them, or a list of records."""
    name = _only_list(found) if field not in found else None
    value = found[name or chosen_field(str(path), field, list(found))]
    if isinstance(value, dict) and all(map(str.isdigit, value)):
        value = list(value.values())  # as pandas writes columns: by the rows' numbers
    if not isinstance(value, list) or _is_conversation(value):
        return iter([(str(path), value)])
    return _members(path, value, field)


def _only_list(found: JsonObject) -> str | None:
    """The name of the list of records that an object is there for."""
    lists = {name: value for name, value in found.items() if isinstance(value, list) and value}
    if len(lists) != 1:
        return None
    [(name, value)] = lists.items()
    return name if len(found) == 1 or name == "data" or not isinstance(value[0], str) else None


def _members(path: Path, items: Iterable[Any], field: str) -> Iterator[Record]:
    for number, item in enumerate(items, start=1):
        place = f"{path}: item {number}"
        yield place, member(item, field, place) if isinstance(item, dict) else item


def _is_conversation(value: list[Any]) -> bool:
    return bool(value) and isinstance(value[0], dict) and bool({"role", "from"} & set(value[0]))


class _Reader:
    """The text of a JSON file, as far as it was asked for."""

    def __init__(self, path: Path, file: BinaryIO) -> None:
        self._path, self._file = path, file
        self._decoder = codecs.getincrementaldecoder("utf-8-sig")()
        self._text, self._at, self._ended = "", 0, False
        self._lines = 0  # before what is kept of the text

    def peek(self) -> str:
        """The next character that is no white space; "" at the end."""
        while True:
            found = _SPACE.match(self._text, self._at)
            assert found is not None
            self._at = found.end()
            if self._at < len(self._text) or not self._more(_CHUNK):
                return self._text[self._at : self._at + 1]

    def is_lines(self) -> bool:
        """Whether the first line is a JSON object, and others follow it."""
        while len(rows := self._text[self._at :].split("\n", 1)) < 2 or not rows[1].strip():
            self._bound()
            if not self._more(max(_CHUNK, len(self._text))):
                return False
        try:
            json.loads(rows[0])
        except (ValueError, RecursionError):
            return False
        return True

    def whole(self) -> str:
        """All the text."""
        while self._more(max(_CHUNK, len(self._text))):
            self._bound()
        return self._text

    def items(self) -> Iterator[Any]:
        """The members of the list that begins here."""
        self._at += 1
        number, after = 0, ","
        if self.peek() == "]":
            self._at, after = self._at + 1, "]"
        while after == ",":
            number += 1
            self.peek()
            yield self._item(number)
            after = self.peek()
            self._at += 1
            self._forget()
        if after != "]":
            raise self._wrong(number, "a comma or ] is missing after it", self._at - 1)
        if self.peek():
            raise RequestError(f"{self._place(self._at)}: text after the end of the list")

    def _item(self, number: int) -> Any:
        while True:
            problem = "a value without an end"
            try:
                value, end = _DECODER.raw_decode(self._text, self._at)
                if end < len(self._text) or not self._more(_CHUNK):  # a number may go on
                    self._at = end
                    return value
            except json.JSONDecodeError as error:
                problem = error.msg
                cut = problem.startswith("Unterminated") or error.pos > len(self._text) - _TAIL
                if not (cut and self._more(max(_CHUNK, len(self._text)))):
                    raise self._wrong(number, problem, error.pos) from error
            except ValueError as error:
                raise self._wrong(number, "a number of too many digits", self._at) from error
            except RecursionError as error:
                raise self._wrong(number, "nested too deeply", self._at) from error
            if len(self._text) - self._at > LONGEST:
                problem = f"{problem}, within {LONGEST:,} characters"
                raise self._wrong(number, problem, self._at)

    def _wrong(self, number: int, problem: str, at: int) -> RequestError:
        return RequestError(
            f"{self._place(at)}: item {number} is not valid JSON ({problem})", hint=_HINT
        )

    def _place(self, at: int) -> str:
        return f"{self._path}:{self._lines + self._text.count(chr(10), 0, at) + 1}"

    def _bound(self) -> None:
        if len(self._text) > LONGEST:
            raise RequestError(
                f"{self._path}: an object of more than {LONGEST:,} characters",
                hint="save the texts as .jsonl, one object a line, which is read piece by piece",
            )

    def _forget(self) -> None:
        """Let go of text that was read, where it is most of what is kept."""
        if self._at > _CHUNK and self._at > len(self._text) // 2:
            self._lines += self._text.count("\n", 0, self._at)
            self._text, self._at = self._text[self._at :], 0

    def _more(self, size: int) -> bool:
        """Add up to `size` bytes; False where there are none."""
        if self._ended:
            return False
        data = self._file.read(size)
        self._ended = not data
        try:
            self._text += self._decoder.decode(data, final=self._ended)
        except UnicodeDecodeError as error:
            line = self._lines + self._text.count("\n")
            line += error.object[: error.start].count(b"\n")
            raise not_utf8(f"{self._path}:{line + 1}") from error
        return not self._ended
