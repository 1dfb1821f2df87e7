"""What users may say of a GGUF file: keys of its metadata and their types. No torch.

github.com/ggml-org/ggml/blob/master/docs/gguf.md lists the keys that are usual.
"""

from __future__ import annotations

import json
import math
import re
from typing import Any

from llmopt.errors import RequestError

#: what a conversion says itself, by keys and by what keys begin with
_OWN = {
    "general.architecture",
    "general.type",
    "general.file_type",
    "general.quantization_version",
    "general.alignment",
}
_OWN_PARTS = ("tokenizer.", "split.", "quantize.")
_LISTS = ("general.tags", "general.languages")
_NUMBERS = ("general.base_model.count", "general.dataset.count")
_KEY = re.compile(r"[A-Za-z0-9_-]+(\.[A-Za-z0-9_-]+)*")
_LONGEST_KEY = 127
_LARGEST_FLOAT = 3.4028234e38  # of float32


def check_entry(key: str, value: Any) -> Any:
    """The value to store: a text, bool, int, float, or a list of one of these.

    RequestError where the key is not the user's to set, or cannot have the value.
    """
    if not _KEY.fullmatch(key) or len(key) > _LONGEST_KEY:
        raise RequestError(
            f"{key[:80]!r} is no key of a GGUF file", hint="words joined by dots: general.author"
        )
    if key == "general.name":
        raise RequestError("general.name is the file's name", hint="give it as `name` (--name)")
    if key in _OWN or key.startswith(_OWN_PARTS):
        raise RequestError(f"{key} is what the conversion makes it, and cannot be set")
    if key in _LISTS and isinstance(value, str):
        value = [value]
    values = value if isinstance(value, list) else [value]
    if not values or len({type(each) for each in values}) > 1:
        raise RequestError(f"the list of {key} is empty, or mixes types")
    for each in values:
        _check_scalar(key, each)
    textual = key.startswith("general.") and key not in _NUMBERS and "sampling" not in key
    if textual and (not isinstance(values[0], str) or (key not in _LISTS and values is value)):
        raise RequestError(
            f"{key} is {'a list of texts' if key in _LISTS else 'a text'}, not {value!r}"[:200],
            hint="put it in quotes" if values is not value else None,
        )
    return value


def check_text(what: str, text: str) -> str:
    """The text, if a file can hold it and it says something; RequestError else."""
    if not text.strip():
        raise RequestError(f"{what} has no text")
    try:
        text.encode()
    except UnicodeEncodeError:
        raise RequestError(f"{what} is not UTF-8 text") from None
    return text


def parsed(key: str, text: str) -> Any:
    """The value that a text on the command line stands for: a number, a bool or a list of JSON.

    Else, and for the usual keys that are texts, the text itself; commas part the lists of those.
    """
    if key in _LISTS and not text.startswith("["):
        return [part.strip() for part in text.split(",")]
    if key.startswith("general.") and key not in (*_LISTS, *_NUMBERS) and "sampling" not in key:
        return text
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return text
    return value if isinstance(value, bool | int | float | str | list) else text


def _check_scalar(key: str, value: Any) -> None:
    if isinstance(value, str):
        check_text(key, value)
    elif isinstance(value, bool):
        pass
    elif isinstance(value, int):
        if not -(1 << 63) <= value < 1 << 63:
            raise RequestError(f"{key} is an integer that 64 bits do not hold")
    elif not isinstance(value, float) or not abs(value) <= _LARGEST_FLOAT or math.isnan(value):
        raise RequestError(f"{key} is no text, bool or number of 32 bits: {value!r}"[:200])
