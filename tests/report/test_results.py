"""Documents that a report is made of, and those it refuses."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from llmopt.errors import RequestError
from llmopt.report.results import Results


def test_unknown_members_and_missing_values_are_fine() -> None:
    bench = {"schema": 1, "extra": 1, "entries": [{"name": "a", "bytes": 5, "kl": None}]}
    read = Results.from_documents(bench, {"other": {}}, {})
    assert read.entries[0].passed
    assert read.corpus is None
    assert read.speed == {}


def test_an_original_without_a_manifest_of_ours(entry: Callable[..., Any]) -> None:
    bench = {"schema": 1, "entries": [entry("a", 1, 0.1)]}
    assert Results.from_documents(bench, {}, {"a": {}}).manifests["a"].ledger == []


@pytest.mark.parametrize(
    ("bench", "message"),
    [
        ({}, "the bench results cannot be read: schema"),
        ({"schema": 2, "entries": [{"name": "a", "bytes": 1}]}, "schema: Input should be 1"),
        ({"schema": 1, "entries": []}, "entries: "),
        ({"schema": 1, "entries": [{"name": "a", "bytes": "many"}]}, r"entries\.0\.bytes"),
        ({"schema": 1, "entries": [{"name": "a", "bytes": 1}] * 2}, "one model twice"),
    ],
)
def test_malformed_results_name_the_place(bench: dict[str, Any], message: str) -> None:
    with pytest.raises(RequestError, match=message):
        Results.from_documents(bench, {}, {})


def test_malformed_manifest_names_the_model(entry: Callable[..., Any]) -> None:
    bench = {"schema": 1, "entries": [entry("a", 1, 0.1)]}
    with pytest.raises(RequestError, match=r"the manifest of a cannot be read: ledger\.0\.action"):
        Results.from_documents(bench, {}, {"a": {"ledger": [{"name": "w", "action": "lost"}]}})
