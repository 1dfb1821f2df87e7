"""JSON and text on disk: written whole or not at all, read strictly."""

from __future__ import annotations

import contextlib
import json
import math
import os
from pathlib import Path
from typing import Any, NoReturn

from pydantic import JsonValue

from llmopt.errors import RequestError

#: an object of JSON; what its members are is for whoever reads it to check
JsonObject = dict[str, JsonValue]

#: far above any manifest: that of a model of 100,000 tensors takes 20 MB
_LARGEST = 1 << 28


def canonical(value: Any) -> str:
    """JSON with one spelling only, for hashing."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True)


def finite(value: Any) -> Any:
    """The same document with null for what JSON has no number for."""
    if isinstance(value, dict):
        return {key: finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def write_json(path: Path, value: Any) -> None:
    """Write JSON so that `path` holds either the old or the new document, never half of one."""
    text = json.dumps(finite(value), indent=1, sort_keys=True, ensure_ascii=False, allow_nan=False)
    write_text(path, text + "\n")


def write_text(path: Path, text: str) -> None:
    """Write a text so that `path` holds either the old or the new one, never half of one."""
    temporary = unfinished(path)
    try:
        with temporary.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException as error:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        if isinstance(error, OSError) and error.filename is None:
            error.filename = str(path)  # a full disk does not say where
        raise


def unfinished(path: Path) -> Path:
    """Where what is to become `path` is written: a kill may leave it behind."""
    return path.with_name(f".{path.name}.new")


def read_object(path: Path) -> JsonObject:
    """The JSON object in a file of ours, or RequestError saying why there is none.

    What JSON parsers read in different ways (a name twice, NaN) is no JSON here.
    """
    try:
        if path.stat().st_size > _LARGEST:
            raise ValueError(f"it has more than {_LARGEST:,} bytes")
        value = json.loads(
            path.read_text(encoding="utf-8"),
            object_pairs_hook=_unique,
            parse_constant=_no_number,
        )
        if not isinstance(value, dict):
            raise ValueError("it is no JSON object")
    except RecursionError:
        raise RequestError(f"{path} cannot be read: it is nested too deeply") from None
    except UnicodeDecodeError:
        raise RequestError(f"{path} cannot be read: it is not UTF-8 text") from None
    except ValueError as error:
        raise RequestError(f"{path} cannot be read: {error}") from None
    return value


def _unique(pairs: list[tuple[str, Any]]) -> JsonObject:
    found: JsonObject = {}
    for key, value in pairs:
        if key in found:
            raise ValueError(f"it has the name {key!r} twice in one object")
        found[key] = value
    return found


def _no_number(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is no JSON")
