"""JSON that is on disk whole or not at all, and read strictly."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path

import pytest

from llmopt.artifact import documents
from llmopt.errors import RequestError


def test_write_json_leaves_no_half_document(tmp_path: Path) -> None:
    documents.write_json(tmp_path / "a.json", {"x": 1})
    with pytest.raises(TypeError):
        documents.write_json(tmp_path / "a.json", {"x": object()})
    assert json.loads((tmp_path / "a.json").read_text()) == {"x": 1}


def test_a_full_disk_leaves_nothing_and_says_where(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(documents.os, "fsync", full)
    with pytest.raises(OSError, match="No space left") as raised:
        documents.write_text(tmp_path / "a.json", "{}")
    assert raised.value.filename == str(tmp_path / "a.json")
    assert list(tmp_path.iterdir()) == []


def test_finite_replaces_what_json_cannot_hold() -> None:
    assert documents.finite({"a": [float("nan"), 1.0], "b": float("inf")}) == {
        "a": [None, 1.0],
        "b": None,
    }


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"{", "cannot be read"),
        (b"[]", "no JSON object"),
        (b'{"a": 1, "a": 2}', "'a' twice"),
        (b'{"a": {"b": NaN}}', "NaN is no JSON"),
        (b'{"a": -Infinity}', "-Infinity is no JSON"),
        (b'{"a": "\xff"}', "not UTF-8"),
        (b'{"a":' * 100_000, "nested too deeply"),
        (b'{"a": ' + b"1" * 5000 + b"}", "cannot be read"),
    ],
    ids=["cut", "list", "twice", "nan", "infinity", "latin", "deep", "digits"],
)
def test_what_is_no_strict_json_is_refused(tmp_path: Path, content: bytes, says: str) -> None:
    (tmp_path / "a.json").write_bytes(content)
    with pytest.raises(RequestError, match=says):
        documents.read_object(tmp_path / "a.json")


def test_a_huge_file_is_not_read(tmp_path: Path) -> None:
    with (tmp_path / "a.json").open("wb") as file:
        file.truncate(1 << 40)
    with pytest.raises(RequestError, match="more than"):
        documents.read_object(tmp_path / "a.json")
