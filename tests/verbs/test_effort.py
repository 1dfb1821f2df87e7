"""What plans say of products, against what is counted while steps run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from torch.utils.flop_counter import FlopCounterMode

from llmopt import pipeline, planner
from llmopt.model.effort import Effort, total
from llmopt.planner import Plan
from llmopt.recipe import from_data
from llmopt.step import RunOptions

TEXTS = {
    "calibration": {"source": "demo", "sequences": 4, "length": 128},
    "evaluation": {"source": "demo", "windows": 2, "length": 128},
}


class Silent:
    """Is told of a run, and says nothing."""

    def __getattr__(self, _: str) -> Any:
        return lambda *_, **__: None


def planned(folder: Path, **step: object) -> Plan:
    data = {"version": 1, "model": "demo", "data": TEXTS, "steps": [{"id": "q", **step}]}
    return planner.plan(*from_data(data), folder / "out", fetch=False)


def effort(plan: Plan) -> Effort:
    return total(step.effort for step in plan.steps)


def counted(plan: Plan) -> float:
    """Operations of matrix products; torch counts none of sums in place, as Hessians are."""
    with FlopCounterMode(display=False) as counter:
        pipeline.run(plan, RunOptions(), Silent())
    return float(counter.get_total_flops())


@pytest.mark.parametrize(
    "step",
    [
        {"convert": {"to": "imatrix"}},
        {"quantize": {"method": "rtn", "gate": []}},
        {"bench": {"speed": False}},
    ],
    ids=lambda step: next(iter(step)),
)
def test_products_are_those_that_are_computed(tmp_path: Path, step: dict[str, object]) -> None:
    plan = planned(tmp_path, **step)
    assert counted(plan) == pytest.approx(effort(plan).amounts["products"], rel=0.02)


def test_a_walk_in_turn_computes_what_is_planned_and_a_little_for_each_group(
    tmp_path: Path,
) -> None:
    plan = planned(tmp_path, quantize={"method": "gptq", "gate": []})
    found = counted(plan) / effort(plan).amounts["products"]
    assert 1 <= found < 1.8  # groups settle among themselves: that is part of choosing codes


def test_twice_the_text_is_twice_the_forwards_and_hessians(tmp_path: Path) -> None:
    one = effort(planned(tmp_path, quantize={"method": "gptq", "gate": []}))
    texts = {**TEXTS, "calibration": {"source": "demo", "sequences": 8, "length": 128}}
    data = {"version": 1, "model": "demo", "data": texts,
            "steps": [{"id": "q", "quantize": {"method": "gptq", "gate": []}}]}  # fmt: skip
    two = effort(planner.plan(*from_data(data), tmp_path / "two", fetch=False))
    for kind in ("hessians", "attention"):
        assert two.amounts[kind] == 2 * one.amounts[kind]
    for kind in ("factors", "feedback", "feedback sweep", "written"):
        assert two.amounts[kind] == one.amounts[kind]


def test_what_is_chosen_follows_from_the_method(tmp_path: Path) -> None:
    def kinds(**step: object) -> set[str]:
        return set(effort(planned(tmp_path, **step)).amounts)

    assert "feedback" in kinds(quantize={"method": "gptq", "gate": []})
    assert {"clipping", "scale search"} <= kinds(quantize={"method": "awq", "gate": []})
    nearest = kinds(convert={"to": "gguf:Q4_K_M", "gate": []})
    assert {"Q4_K best", "Q6_K best"} <= nearest
    assert "hessians" not in nearest
    assert "Q4_K feedback" in kinds(convert={"to": "gguf:Q4_K_M", "method": "gptq", "gate": []})
    assert {"start", "decoding"} <= kinds(bench={})


def test_more_sweeps_take_longer_and_none_takes_no_sweeps(tmp_path: Path) -> None:
    none, some, many = (
        effort(planned(tmp_path, quantize={"method": "gptq", "refine": refine, "gate": []})).amounts
        for refine in (0, 2, 6)
    )
    assert none["feedback sweep"] == 0
    assert none["products"] < some["products"] < many["products"]
    assert many["feedback sweep"] == pytest.approx(7 / 3 * some["feedback sweep"])
