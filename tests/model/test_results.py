"""What a bench step writes is read as it was, and nothing else is."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest

from llmopt.artifact import finite
from llmopt.errors import RequestError
from llmopt.model.results import Bench, BenchEntry, Verdict, parse
from llmopt.specs.metrics import Interval


def test_unknown_members_and_missing_values_are_fine() -> None:
    read = parse(Bench, {"schema": 2, "extra": 1, "entries": [{"name": "a"}]}, "it")
    assert read.entries[0].passed
    assert read.corpus is None
    assert read.entries[0].value("kl.mean") is None


def test_what_is_written_is_read_again_and_what_is_not_finite_is_no_number() -> None:
    metrics: dict[str, Any] = {
        "size.bytes": 5,
        "kl.mean": Interval(0.1, 0.05, 0.2),
        "kl.max": math.inf,
        "perplexity": Interval(math.nan, math.nan, math.nan),
    }
    verdict = Verdict(gate="kl.max < 1", value=math.inf, passed=False)
    bench = Bench(entries=[BenchEntry(name="a", metrics=metrics, gates=[verdict])])
    document = json.loads(json.dumps(finite(bench.document())))
    (entry,) = document["entries"]
    assert entry["metrics"] == {
        "size.bytes": 5,
        "kl.mean": {"value": 0.1, "low": 0.05, "high": 0.2},
        "kl.max": None,
        "perplexity": {"value": None, "low": None, "high": None},
    }
    read = parse(Bench, document, "it").entries[0]
    assert read.bytes == 5
    assert read.metrics["kl.mean"] == metrics["kl.mean"]
    assert math.isnan(read.value("kl.max") or 0)
    assert math.isnan(read.value("perplexity") or 0)


@pytest.mark.parametrize(
    ("bench", "message"),
    [
        ({"schema": 2, "entries": []}, "the bench results cannot be read: entries: "),
        ({"schema": 2, "entries": [{"name": "a", "metrics": {"kl.max": "much"}}]},
         r"entries\.0\.metrics\.kl\.max"),
        ({"schema": 2, "entries": [{"name": "a"}] * 2}, "one model is named twice"),
    ],
)  # fmt: skip
def test_malformed_results_name_the_place(bench: dict[str, Any], message: str) -> None:
    with pytest.raises(RequestError, match=message):
        parse(Bench, bench, "the bench results")
