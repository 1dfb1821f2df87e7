"""Opening what a model is said to lie in, and the JSON beside it. No torch."""

from __future__ import annotations

import json
import stat
from io import DEFAULT_BUFFER_SIZE, BufferedReader, FileIO
from pathlib import Path
from typing import Any

from llmopt.artifact import JsonObject
from llmopt.errors import RequestError


def open_regular(path: Path, buffering: int = DEFAULT_BUFFER_SIZE) -> BufferedReader:
    """The file, opened for reading; RequestError for what is none, and would be waited for.

    A pipe without a writer blocks whoever opens it, a device may never end.
    """
    try:
        mode = path.stat().st_mode
        if stat.S_ISREG(mode):
            return BufferedReader(FileIO(path), buffering)
    except OSError as error:
        raise RequestError(f"cannot read {path}: {error.strerror}") from error
    raise RequestError(f"{path} is {_kind(mode)}, not a file")


def read_json(path: Path) -> JsonObject:
    """The JSON object in a file, or RequestError saying where it is broken."""
    try:
        with open_regular(path) as file:
            return json_object(file.read(), path.name)
    except OSError as error:
        raise RequestError(f"cannot read {path}: {error.strerror}") from error


def json_object(text: bytes, where: str) -> JsonObject:
    """The JSON object in `text`; RequestError saying what `where` has instead."""

    def unique(pairs: list[tuple[str, Any]]) -> JsonObject:
        result = dict(pairs)
        if len(result) != len(pairs):
            keys = [key for key, _ in pairs]
            twice = next(key for key in keys if keys.count(key) > 1)
            raise RequestError(f"{where} has the key {twice!r} twice")
        return result

    try:
        value = json.loads(text.decode("utf-8"), object_pairs_hook=unique)
    except UnicodeDecodeError as error:
        raise RequestError(f"{where} is not UTF-8 text") from error
    except RecursionError as error:
        raise RequestError(f"{where} is nested too deeply to be JSON of a model") from error
    except json.JSONDecodeError as error:
        raise RequestError(
            f"{where} is not valid JSON: {error.msg} at line {error.lineno} column {error.colno}"
        ) from error
    except ValueError as error:  # an integer of thousands of digits
        raise RequestError(f"{where} is not valid JSON: {error}") from error
    if not isinstance(value, dict):
        raise RequestError(f"{where} is not a JSON object")
    return value


def _kind(mode: int) -> str:
    kinds = {
        stat.S_IFIFO: "a pipe",
        stat.S_IFSOCK: "a socket",
        stat.S_IFCHR: "a device",
        stat.S_IFBLK: "a device",
        stat.S_IFDIR: "a folder",
    }
    return kinds.get(stat.S_IFMT(mode), "something else")
