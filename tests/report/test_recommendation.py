"""The rule that says which model to ship, case by case."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from llmopt.model.results import BenchEntry
from llmopt.report.comparison import Comparison
from llmopt.report.quality import CLASSES, DAMAGED, class_of
from llmopt.report.recommendation import Recommendation, choose, front

Make = Callable[..., Any]
COLLAPSE = [{"gate": "kl.mean < 0.3", "value": 0.01, "passed": True, "default": True}]
FAILED = [{"gate": "kl.mean < 0.05", "value": 0.21, "passed": False}]


def shipped(verdict: Recommendation) -> str | None:
    return verdict.ship.name if verdict.ship else None


def test_the_smallest_that_passes(comparison: Make, entry: Make, base: Any) -> None:
    verdict = choose(
        comparison(
            base, entry("w8", 50, 0.001), entry("w4", 30, 0.01), entry("w3", 20, 0.2, gates=FAILED)
        )
    )
    assert shipped(verdict) == "w4"
    others = dict(verdict.others)
    assert others["w3"] == "failed its gate: kl.mean < 0.05, measured 0.210"
    assert others["w8"] == "larger: 50.0 MB, mean KL 0.00100, good"
    assert "30.0 MB, 30.0% of the original" in verdict.why
    assert "it passes the gate kl.mean < 0.5." in verdict.why


def test_clearly_better_at_the_same_size_beats_a_few_bytes_less(
    comparison: Make, entry: Make, base: Any
) -> None:
    verdict = choose(comparison(base, entry("rtn", 30.0, 0.02), entry("gptq", 30.2, 0.01)))
    assert shipped(verdict) == "gptq"
    assert dict(verdict.others)["rtn"] == "gptq is as small and clearly better"


def test_better_but_two_per_cent_larger_does_not(comparison: Make, entry: Make, base: Any) -> None:
    assert (
        shipped(choose(comparison(base, entry("rtn", 30, 0.02), entry("g", 30.6, 0.01)))) == "rtn"
    )


def test_overlapping_intervals_at_one_size_go_to_the_lower_mean(
    comparison: Make, entry: Make, base: Any
) -> None:
    verdict = choose(comparison(base, entry("a", 30.0, 0.0105), entry("b", 30.1, 0.0100)))
    assert shipped(verdict) == "b"
    assert dict(verdict.others)["a"].startswith("as small")


def test_a_full_tie_goes_to_the_name_whatever_the_order(
    comparison: Make, entry: Make, base: Any
) -> None:
    pair = [entry("b", 30, 0.01), entry("a", 30, 0.01)]
    assert shipped(choose(comparison(base, *pair))) == "a"
    assert shipped(choose(comparison(base, *pair[::-1]))) == "a"


def test_a_model_that_failed_beats_nobody(comparison: Make, entry: Make, base: Any) -> None:
    failed = entry("bad", 30, 0.001, gates=FAILED)
    assert shipped(choose(comparison(base, failed, entry("good", 30, 0.01)))) == "good"


def test_none_passes(comparison: Make, entry: Make, base: Any) -> None:
    verdict = choose(comparison(base, entry("w3", 20, 0.2, gates=FAILED), entry("big", 100, 0.01)))
    assert verdict.ship is None
    assert dict(verdict.others)["big"] == "not smaller than the original"
    assert "No model may replace the original" in verdict.why


def test_without_a_base_the_loss_is_not_known(comparison: Make, entry: Make) -> None:
    verdict = choose(comparison(entry("only", 30, None)))
    assert verdict.ship is None
    assert "--against" in verdict.why
    assert dict(verdict.others) == {"only": "no KL to the original was measured"}


def test_only_the_original(comparison: Make, base: Any) -> None:
    verdict = choose(comparison(base))
    assert (verdict.ship, verdict.others) == (None, ())
    assert "nothing to choose" in verdict.why


def test_a_collapsed_model_is_not_shipped(comparison: Make, entry: Make, base: Any) -> None:
    assert choose(comparison(base, entry("broken", 20, float("inf"), gates=[]))).ship is None


def test_no_gate_is_said(comparison: Make, entry: Make, base: Any) -> None:
    assert "no gate was set" in choose(comparison(base, entry("w4", 30, 0.01, gates=[]))).why


def test_front_has_what_nothing_matches_in_both(comparison: Make, entry: Make) -> None:
    made: Comparison = comparison(
        entry("w8", 50, 0.001),
        entry("w4", 30, 0.01),
        entry("worse", 40, 0.02),
        entry("w3", 20, 0.2),
    )
    assert [e.name for e in front(list(made.entries))] == ["w3", "w4", "w8"]


def graded(entry: Make, name: str, megabytes: float, kl: float, agreement: float) -> Any:
    """A model whose only gate is the default one."""
    spread = {"value": agreement, "low": agreement - 0.002, "high": agreement + 0.002}
    return entry(name, megabytes, kl, metrics={"agreement": spread}, gates=COLLAPSE)


def test_without_gates_on_quality_the_smallest_near_lossless(
    comparison: Make, entry: Make, base: Any
) -> None:
    models = [
        graded(entry, "w8", 50, 0.0002, 0.99),
        graded(entry, "w6", 40, 0.005, 0.96),
        graded(entry, "w4", 30, 0.02, 0.92),
        graded(entry, "w3", 28.5, 0.08, 0.85),
    ]
    verdict = choose(comparison(base, *models))
    assert (shipped(verdict), verdict.headline) == ("w6", "Ship w6")
    assert "near-lossless: mean KL" in verdict.why
    assert "no gate on quality was set" in verdict.why
    smaller, larger = verdict.notes
    assert smaller == (
        "Next smaller: w4 (30.0 MB, 25.0% smaller), 4.0 times the divergence, "
        "92.0% same top token: good."
    )
    assert larger.startswith("Next larger: w8 (50.0 MB, 25.0% larger), 1/25 of the divergence")
    size_alone = [{"gate": "size.ratio < 0.9", "value": 0.3, "passed": True}]
    models = [model | {"gates": size_alone} for model in models]
    assert shipped(choose(comparison(base, *models))) == "w6"
    own = [{"gate": "kl.mean < 0.1", "value": 0.08, "passed": True}]
    models = [model | {"gates": [*COLLAPSE, *own]} for model in models]
    by_gates = choose(comparison(base, *models))
    assert shipped(by_gates) == "w3"
    assert "visible: mean KL" in by_gates.why
    assert "it passes the gate kl.mean < 0.1." in by_gates.why


def test_without_a_near_lossless_one_the_best(comparison: Make, entry: Make, base: Any) -> None:
    models = [graded(entry, "w4", 30, 0.02, 0.92), graded(entry, "w3", 28.5, 0.08, 0.85)]
    verdict = choose(comparison(base, *models))
    assert (shipped(verdict), verdict.headline) == ("w4", "Best: w4 (good)")
    assert verdict.why.startswith("No model is near-lossless; this is the best.")
    assert verdict.document()["class"] == "good"
    as_good = graded(entry, "w4s", 20, 0.0205, 0.92)
    assert shipped(choose(comparison(base, *models, as_good))) == "w4s"  # intervals overlap


def test_a_damaged_model_is_not_recommended(comparison: Make, entry: Make, base: Any) -> None:
    verdict = choose(comparison(base, graded(entry, "w2", 20, 0.5, 0.7)))
    assert verdict.ship is None
    assert verdict.why.startswith("Even the best, w2, is damaged")
    assert dict(verdict.others) == {"w2": "20.0 MB, mean KL 0.500, damaged"}
    assert verdict.document()["recommended"] is None


@pytest.mark.parametrize(
    ("kl", "agreement", "expected"),
    [
        (0.009, 0.953, "near-lossless"),
        (0.0095, 0.97, "good"),  # the interval's upper end is above the limit
        (0.001, 0.951, "good"),  # the lower end of agreement is below
        (0.001, 0.85, "visible"),
        (0.3, 0.99, "damaged"),
    ],
)
def test_both_limits_hold_at_the_worse_end(
    entry: Make, kl: float, agreement: float, expected: str
) -> None:
    assert class_of(BenchEntry.model_validate(graded(entry, "m", 1, kl, agreement))) == expected


def test_what_is_not_finite_is_damaged_and_what_was_not_compared_has_no_class(
    comparison: Make, entry: Make, base: Any
) -> None:
    broken = entry("broken", 20, 0.1, metrics={"kl.mean": None}, gates=[])
    assert class_of(BenchEntry.model_validate(broken)) == DAMAGED
    assert "not finite" in dict(choose(comparison(base, broken)).others)["broken"]
    assert class_of(BenchEntry.model_validate(base)) is None
    assert [c.name for c in CLASSES] == ["near-lossless", "good", "visible"]
