"""The rule that says which model to ship, case by case."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from llmopt.report.results import Results
from llmopt.report.verdict import Verdict, choose, front

Make = Callable[..., Any]
FAILED = [{"gate": "kl.mean < 0.05", "value": 0.21, "passed": False}]


def shipped(verdict: Verdict) -> str | None:
    return verdict.ship.name if verdict.ship else None


def test_the_smallest_that_passes(results: Make, entry: Make, base: Any) -> None:
    verdict = choose(
        results(
            base, entry("w8", 50, 0.001), entry("w4", 30, 0.01), entry("w3", 20, 0.2, gates=FAILED)
        )
    )
    assert shipped(verdict) == "w4"
    others = dict(verdict.others)
    assert others["w3"] == "failed its gate: kl.mean < 0.05, measured 0.210"
    assert others["w8"] == "larger: 50.0 MB, mean KL 0.00100"
    assert "30.0 MB, 30.0% of the original" in verdict.why
    assert "passes its gate" in verdict.why


def test_clearly_better_at_the_same_size_beats_a_few_bytes_less(
    results: Make, entry: Make, base: Any
) -> None:
    verdict = choose(results(base, entry("rtn", 30.0, 0.02), entry("gptq", 30.2, 0.01)))
    assert shipped(verdict) == "gptq"
    assert dict(verdict.others)["rtn"] == "gptq is as small and clearly better"


def test_better_but_two_per_cent_larger_does_not(results: Make, entry: Make, base: Any) -> None:
    assert shipped(choose(results(base, entry("rtn", 30, 0.02), entry("g", 30.6, 0.01)))) == "rtn"


def test_overlapping_intervals_at_one_size_go_to_the_lower_mean(
    results: Make, entry: Make, base: Any
) -> None:
    verdict = choose(results(base, entry("a", 30.0, 0.0105), entry("b", 30.1, 0.0100)))
    assert shipped(verdict) == "b"
    assert dict(verdict.others)["a"].startswith("as small")


def test_a_full_tie_goes_to_the_name_whatever_the_order(
    results: Make, entry: Make, base: Any
) -> None:
    pair = [entry("b", 30, 0.01), entry("a", 30, 0.01)]
    assert shipped(choose(results(base, *pair))) == "a"
    assert shipped(choose(results(base, *pair[::-1]))) == "a"


def test_a_model_that_failed_beats_nobody(results: Make, entry: Make, base: Any) -> None:
    failed = entry("bad", 30, 0.001, gates=FAILED)
    assert shipped(choose(results(base, failed, entry("good", 30, 0.01)))) == "good"


def test_none_passes(results: Make, entry: Make, base: Any) -> None:
    verdict = choose(results(base, entry("w3", 20, 0.2, gates=FAILED), entry("big", 100, 0.01)))
    assert verdict.ship is None
    assert dict(verdict.others)["big"] == "not smaller than the original"
    assert "No model may replace the original" in verdict.why


def test_without_a_base_the_loss_is_not_known(results: Make, entry: Make) -> None:
    verdict = choose(results(entry("only", 30, None)))
    assert verdict.ship is None
    assert "--against" in verdict.why
    assert dict(verdict.others) == {"only": "no KL to the original was measured"}


def test_only_the_original(results: Make, base: Any) -> None:
    verdict = choose(results(base))
    assert (verdict.ship, verdict.others) == (None, ())
    assert "nothing to choose" in verdict.why


def test_a_collapsed_model_is_not_shipped(results: Make, entry: Make, base: Any) -> None:
    assert choose(results(base, entry("broken", 20, float("inf"), gates=[]))).ship is None


def test_no_gate_is_said(results: Make, entry: Make, base: Any) -> None:
    assert "no gate was set" in choose(results(base, entry("w4", 30, 0.01, gates=[]))).why


def test_front_has_what_nothing_matches_in_both(results: Make, entry: Make) -> None:
    made: Results = results(
        entry("w8", 50, 0.001),
        entry("w4", 30, 0.01),
        entry("worse", 40, 0.02),
        entry("w3", 20, 0.2),
    )
    assert [e.name for e in front(list(made.entries))] == ["w3", "w4", "w8"]
