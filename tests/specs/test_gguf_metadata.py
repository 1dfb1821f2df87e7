"""Keys of GGUF metadata as they are typed on a command line."""

from __future__ import annotations

from typing import Any

import pytest

from llmopt.specs.gguf_metadata import check_entry, parsed


@pytest.mark.parametrize(
    ("key", "text", "value"),
    [
        ("general.version", "1.0", "1.0"),
        ("general.author", "true", "true"),
        ("general.tags", "a, b", ["a", "b"]),
        ("general.tags", '["a,b"]', ["a,b"]),
        ("general.base_model.count", "2", 2),
        ("general.sampling.temp", "0.7", 0.7),
        ("my.key", "7", 7),
        ("my.key", '"7"', "7"),
        ("my.key", "-0.5", -0.5),
        ("my.key", "false", False),
        ("my.key", "[1, 2]", [1, 2]),
        ("my.key", "a=b", "a=b"),
        ("my.key", '{"a": 1}', '{"a": 1}'),
        ("my.key", "null", "null"),
        ("my.key", "[" * 3000, "[" * 3000),
    ],
)
def test_types_of_what_is_typed(key: str, text: str, value: Any) -> None:
    found = check_entry(key, parsed(key, text))
    assert (found, type(found)) == (value, type(value))
