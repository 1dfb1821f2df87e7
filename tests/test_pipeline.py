"""Order, reuse, gates and refusals of a run, on the smallest real steps."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from llmopt import pipeline, planner
from llmopt.artifact import read_manifest, verify
from llmopt.errors import LlmoptError
from llmopt.pipeline import StepResult
from llmopt.planner import Plan, PlannedStep
from llmopt.recipe import from_data
from llmopt.report import card
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


def test_the_card_follows_the_manifest_through_the_gate(
    tmp_path: Path, fake_stages: dict[str, bool]
) -> None:
    fake_stages["passed"] = False
    run(made(tmp_path))
    manifest = read_manifest(tmp_path / "q")
    assert verify(tmp_path / "q") == []
    text = (tmp_path / "q" / "README.md").read_text("utf-8")
    assert text == card.render(manifest)
    assert "failed its quality gate" in text
    assert "license: apache-2.0" in text  # as the demo model's own card says
    assert [file["path"] for file in manifest["files"]] == ["result.txt"]
    assert not (tmp_path / "s" / "README.md").exists()


def test_a_card_that_a_kill_or_a_hand_changed_is_written_again(
    tmp_path: Path, fake_stages: dict[str, bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    run(made(tmp_path / "whole"))
    whole = (tmp_path / "whole" / "q" / "README.md").read_bytes()
    monkeypatch.setattr(pipeline.artifact, "_write_text", killed_at_the_second_card())
    with pytest.raises(KeyboardInterrupt):
        run(made(tmp_path / "killed"))
    monkeypatch.undo()
    monkeypatch.setattr(pipeline, "_stage", lambda _: pytest.fail("done already"))
    assert verify(tmp_path / "killed" / "q") == ["content differs: README.md"]
    plan = made(tmp_path / "killed")
    gate_only = replace(plan, steps=plan.steps[:2])
    run(gate_only)
    assert (tmp_path / "killed" / "q" / "README.md").read_bytes() == whole
    assert verify(tmp_path / "killed" / "q") == []
    (tmp_path / "killed" / "q" / "README.md").unlink()
    assert verify(tmp_path / "killed" / "q") == ["missing: README.md"]
    run(gate_only)
    assert (tmp_path / "killed" / "q" / "README.md").read_bytes() == whole


def killed_at_the_second_card() -> object:
    """Writes texts, but stops where a gate's verdict is about to enter the card."""
    original, cards = pipeline.artifact._write_text, []

    def write(path: Path, text: str) -> None:
        cards.extend([path] if path.name == "README.md" else [])
        if len(cards) == 2:
            raise KeyboardInterrupt
        original(path, text)

    return write
