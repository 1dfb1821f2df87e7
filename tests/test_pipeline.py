"""Order, reuse, gates and refusals of a run, on the smallest real steps."""

from __future__ import annotations

from pathlib import Path

import pytest

from llmopt import pipeline, planner
from llmopt.artifact import read_manifest
from llmopt.errors import LlmoptError
from llmopt.pipeline import StepResult
from llmopt.planner import Plan, PlannedStep
from llmopt.recipe import from_data
from llmopt.stages.base import Outcome, RunOptions, Work


class Log:
    """A reporter that remembers."""

    def __init__(self) -> None:
        self.steps: list[str] = []

    def started(self, step: PlannedStep) -> None:
        self.steps.append(step.id)

    def progress(self, step: PlannedStep, what: str, done: int, total: int) -> None:
        pass

    def finished(self, step: PlannedStep, result: StepResult) -> None:
        pass


@pytest.fixture
def fake_stages(monkeypatch: pytest.MonkeyPatch) -> dict[str, bool]:
    """Stages that write a word; `passed` decides what gates find."""
    control = {"passed": True, "break": False}

    class Fake:
        @staticmethod
        def run(work: Work) -> Outcome:
            if control["break"]:
                raise LlmoptError("the disk is full")
            if work.gates_of is None:
                (work.folder / "result.txt").write_text(repr(sorted(work.settings)))
            verdict = {
                "gate": "kl.mean < 1",
                "value": 0.5,
                "passed": control["passed"],
                "model": "q",
            }
            return Outcome(format="fake", gates=[verdict] if work.gates_of else [])

    monkeypatch.setattr(pipeline, "_stage", lambda _: Fake)
    return control


def made(folder: Path, **quantize: object) -> Plan:
    data = {
        "version": 1,
        "model": "demo",
        "steps": [
            {"id": "q", "quantize": {"method": "rtn", **quantize}},
            {"id": "s", "bench": {"from": "q"}},
        ],
    }
    return planner.plan(*from_data(data), folder, fetch=False)


def run(plan: Plan) -> tuple[list[str], list[StepResult]]:
    log = Log()
    return log.steps, pipeline.run(plan, RunOptions(), log)


def test_second_run_does_nothing_and_a_change_reruns_what_depends(
    tmp_path: Path, fake_stages: dict[str, bool]
) -> None:
    assert run(made(tmp_path))[0] == ["q", "q.gate", "s"]
    assert run(made(tmp_path))[0] == []
    assert run(made(tmp_path, gate=["kl.mean < 2"]))[0] == ["q.gate"]
    assert run(made(tmp_path, grid="int8"))[0][0] == "q"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["q", "s"]


def test_a_failed_gate_marks_the_artifact_and_goes_on_measuring(
    tmp_path: Path, fake_stages: dict[str, bool]
) -> None:
    fake_stages["passed"] = False
    steps, results = run(made(tmp_path))
    assert steps == ["q", "q.gate", "s"]
    assert [r.failed for r in results] == [False, True, False]
    assert read_manifest(tmp_path / "q")["gates"][0]["passed"] is False
    assert results[0].artifact.gate_failed


def test_nothing_is_built_on_what_failed(tmp_path: Path, fake_stages: dict[str, bool]) -> None:
    fake_stages["passed"] = False
    plan = made(tmp_path)
    run(plan)
    step = plan.by_id("q")
    from dataclasses import replace

    later = replace(step, id="later", parents=("q",))
    grown = replace(
        plan, steps=(*plan.steps, later), outputs={**plan.outputs, "later": tmp_path / "l"}
    )
    with pytest.raises(LlmoptError, match="later builds on q, which failed its quality gate"):
        run(grown)


def test_a_failing_stage_publishes_nothing(tmp_path: Path, fake_stages: dict[str, bool]) -> None:
    fake_stages["break"] = True
    with pytest.raises(LlmoptError, match="disk is full"):
        run(made(tmp_path))
    assert not (tmp_path / "q").exists()
    fake_stages["break"] = False
    run(made(tmp_path))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["q", "s"]


def test_a_damaged_result_is_made_again(tmp_path: Path, fake_stages: dict[str, bool]) -> None:
    run(made(tmp_path))
    (tmp_path / "q" / "result.txt").unlink()
    assert "q" in run(made(tmp_path))[0]
