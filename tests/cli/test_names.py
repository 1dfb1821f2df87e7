"""What is called as recipes call something is still what the user names."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from llmopt import pipeline
from llmopt.planner import Plan
from llmopt.sources import DEMO_MODEL
from tests.cli.conftest import Llmopt

RTN = ["--method", "rtn", "--gate", "none"]
FEW = ["--windows", 2, "--length", 64, "--no-speed", "--json"]


@pytest.mark.parametrize("name", ["model", "demo", ".m\u00f6del" + "m" * 120])
def test_any_folder_may_be_written(llmopt: Llmopt, tmp_path: Path, name: str) -> None:
    done = llmopt("quantize", "demo", "-o", name, *RTN)
    assert done.code == 0, done.err
    assert [path.name for path in tmp_path.iterdir()] == [name]
    assert llmopt("verify", f"./{name}").code == 0


def test_an_artifact_called_model_is_measured_not_its_original(llmopt: Llmopt) -> None:
    assert llmopt("quantize", "demo", "-o", "model", *RTN).code == 0
    done = llmopt("bench", "model", *FEW, "-o", "benches/model")
    assert done.code == 0, done.err
    base, model = done.document["entries"]
    assert base["is_base"]
    assert model["metrics"]["kl.mean"]["value"] > 0


def test_a_bench_may_be_called_as_what_it_measures(
    llmopt: Llmopt, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(DEMO_MODEL, "w4")
    shutil.copytree(DEMO_MODEL, "w5")
    planned: list[Plan] = []
    monkeypatch.setattr(pipeline, "run", lambda plan, *_: planned.append(plan) or 1 / 0)
    for out in ("benches/w4", "demo"):
        llmopt("bench", "w4", "demo", "--against", "w5", *FEW, "-o", out)
        plan = planned.pop()
        parents = [plan.folder_of(name).name for name in plan.steps[0].parents]
        assert sorted(parents) == ["model", "w4", "w5"]
