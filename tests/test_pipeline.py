"""Order, reuse, gates and refusals of a run, on the smallest real steps."""

from __future__ import annotations

import errno
import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from llmopt import pipeline, planner
from llmopt.artifact import manifest as records
from llmopt.artifact import read_manifest, sealed
from llmopt.errors import LlmoptError, RequestError
from llmopt.model.results import Verdict
from llmopt.pipeline import Ran, StepResult
from llmopt.planner import Plan, PlannedStep
from llmopt.recipe import from_data
from llmopt.report import card
from llmopt.step import Outcome, RunOptions, Work
from llmopt.verification import verify


class Log:
    """A reporter that remembers."""

    def __init__(self) -> None:
        self.steps: list[str] = []

    def phase(self, what: str) -> None:
        """Words for people."""

    def started(self, step: PlannedStep) -> None:
        self.steps.append(step.id)

    def progress(self, step: PlannedStep, what: str, done: int, total: int) -> None:
        pass

    def finished(self, step: PlannedStep, result: StepResult) -> None:
        pass

    def refused(self, step: PlannedStep, why: str) -> None:
        self.steps.append(f"not {step.id}")


@pytest.fixture
def stages(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Stages that write a word; `passed` decides what gates find, `raises` how stages end."""
    control: dict[str, Any] = {"passed": True, "raises": None}

    class Fake:
        @staticmethod
        def run(work: Work) -> Outcome:
            (work.state / "part").write_text("hours of work")
            if control["raises"]:
                raise control["raises"]
            if work.step.judges is None:
                (work.folder / "result.txt").write_text(repr(sorted(work.step.document().items())))
            verdict = Verdict(
                gate="kl.mean < 1", value=0.5, passed=bool(control["passed"]), model="q"
            )
            return Outcome(
                format="fake",
                evidence={"name": "q", "metrics": {}} if work.step.judges else {},
                gates=[verdict] if work.step.judges else [],
            )

    monkeypatch.setattr(pipeline, "load", lambda _: Fake)
    # what they write is no model
    monkeypatch.setattr(pipeline.soundness, "check_model", lambda *_: None)
    monkeypatch.setattr(pipeline.written, "check", lambda *_: None)
    return control


SCORE = {"id": "s", "bench": {"from": "q"}}


def planned(folder: Path, *steps: dict[str, Any], **data: Any) -> Plan:
    recipe = {"version": 1, "model": "demo", "data": data, "steps": list(steps)}
    return planner.plan(*from_data(recipe), folder, fetch=False)


def made(folder: Path, *more: dict[str, Any], data: Any = None, **quantize: Any) -> Plan:
    quantize = {"method": "rtn", **quantize}
    return planned(folder, {"id": "q", "quantize": quantize}, SCORE, *more, **(data or {}))


def run(plan: Plan, **options: Any) -> tuple[list[str], Ran]:
    log = Log()
    return log.steps, pipeline.run(plan, RunOptions(**options), log)


def passed(ran: Ran) -> list[bool]:
    """Of each step, whether no gate failed."""
    return [all(verdict.passed for verdict in result.verdicts) for result in ran.results]


def test_second_run_does_nothing_and_a_change_reruns_what_depends(
    tmp_path: Path, stages: dict[str, Any]
) -> None:
    assert run(made(tmp_path))[0] == ["q", "q.gate", "s"]
    assert run(made(tmp_path))[0] == []
    assert run(made(tmp_path, gate=["kl.mean < 2"]))[0] == ["q.gate"]
    assert run(made(tmp_path, grid="int8"))[0][0] == "q"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["q", "s"]


def test_a_failed_gate_marks_the_artifact_and_goes_on_measuring(
    tmp_path: Path, stages: dict[str, Any]
) -> None:
    stages["passed"] = False
    steps, ran = run(made(tmp_path))
    assert steps == ["q", "q.gate", "s"]
    assert passed(ran) == [True, False, True]
    assert read_manifest(tmp_path / "q")["gates"][0]["passed"] is False
    assert ran.results[0].artifact.failed_gates == ["kl.mean < 1"]
    _, again = run(made(tmp_path))
    assert passed(again) == [True, False, True]


def test_what_builds_on_a_failed_gate_is_refused_and_all_else_runs(
    tmp_path: Path, stages: dict[str, Any]
) -> None:
    stages["passed"] = False
    later = {"id": "later", "convert": {"from": "q", "to": "hf"}}
    last = {"id": "last", "bench": {"from": "later"}}
    other = {"id": "other", "quantize": {"method": "rtn", "grid": "int8", "gate": []}}
    plan = made(tmp_path, later, last, other)
    steps, ran = run(plan)
    assert steps == ["q", "q.gate", "other", "s", "not later", "not last"]
    assert [result.step.id for result in ran.results] == ["q", "q.gate", "other", "s"]
    assert ran.refused == {
        "later": "it builds on q, which failed its quality gate: kl.mean < 1",
        "last": "it needs later, which is refused",
    }
    steps, again = run(plan)  # nothing is left to run, and the refusals are the same
    assert (steps, again.refused) == (["not later", "not last"], ran.refused)


def test_a_gate_that_is_taken_away_takes_its_verdict_with_it(
    tmp_path: Path, stages: dict[str, Any]
) -> None:
    run(made(tmp_path / "plain", gate=[]))
    stages["passed"] = False
    later = {"id": "later", "convert": {"from": "q", "to": "hf"}}
    out = tmp_path / "gated"
    run(made(out, later))
    before = read_manifest(out / "q")
    assert "failed its quality gate" in (out / "q" / "README.md").read_text("utf-8")
    steps, ran = run(made(out, later, gate=[]))
    assert steps == ["later"]
    assert ran.refused == {}
    assert "lifted" in " ".join(ran.results[0].notes)
    after = read_manifest(out / "q")
    assert (after["gates"], after.get("gate")) == ([], None)
    assert after["digest"] == before["digest"]
    assert after["manifest_digest"] != before["manifest_digest"]
    assert verify(out / "q") == []
    for name in ("llmopt.json", "README.md"):  # as if it had never had a gate
        assert (out / "q" / name).read_bytes() == (tmp_path / "plain" / "q" / name).read_bytes()


@pytest.mark.parametrize(
    "change",
    [{"gate": ["kl.mean < 9"]}, {"data": {"evaluation": {"windows": 3}}}],
    ids=["limit", "text"],
)
def test_a_gate_that_changes_judges_anew(
    tmp_path: Path, stages: dict[str, Any], change: dict[str, Any]
) -> None:
    stages["passed"] = False
    later = {"id": "later", "convert": {"from": "q", "to": "hf"}}
    run(made(tmp_path, later))
    stages["passed"] = True
    steps, ran = run(made(tmp_path, later, **change))
    assert "q.gate" in steps
    assert "later" in steps
    assert ran.refused == {}
    assert read_manifest(tmp_path / "q")["gates"][0]["passed"]


def test_a_verdict_does_not_change_keys_and_is_recorded_by_children(
    tmp_path: Path, stages: dict[str, Any]
) -> None:
    later = {"id": "later", "convert": {"from": "q", "to": "hf"}}
    run(made(tmp_path, later))
    (parent,) = read_manifest(tmp_path / "later")["parents"]
    manifest = read_manifest(tmp_path / "q")
    assert parent["manifest_digest"] == manifest["manifest_digest"]
    assert parent["digest"] == manifest["digest"]
    assert run(made(tmp_path, later, gate=["kl.mean < 3"]))[0] == ["q.gate"]


def test_a_failing_stage_publishes_nothing(tmp_path: Path, stages: dict[str, Any]) -> None:
    stages["raises"] = LlmoptError("it broke")
    with pytest.raises(LlmoptError, match="it broke"):
        run(made(tmp_path))
    assert not (tmp_path / "q").exists()
    stages["raises"] = None
    run(made(tmp_path))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["q", "s"]


def test_a_wrong_request_takes_no_work_of_earlier_runs(
    tmp_path: Path, stages: dict[str, Any]
) -> None:
    stages["raises"] = KeyboardInterrupt()
    with pytest.raises(KeyboardInterrupt):
        run(made(tmp_path))
    (work,) = tmp_path.iterdir()
    stages["raises"] = RequestError("that cannot be done")
    for plan in (made(tmp_path), made(tmp_path, grid="int8")):
        with pytest.raises(RequestError):
            run(plan)
        assert list(tmp_path.iterdir()) == [work]
        assert (work / "state" / "part").read_text() == "hours of work"


def test_the_device_is_looked_for_before_work(
    tmp_path: Path, stages: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(RequestError, match="cuda:7"):
        run(made(tmp_path), device="cuda:7")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(RequestError, match="no GPU"):
        run(made(tmp_path), device="cuda")
    assert list(tmp_path.iterdir()) == []
    run(made(tmp_path))
    assert run(made(tmp_path), device="cuda")[0] == []  # there is nothing to compute


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS])
def test_a_disk_that_takes_no_more_is_named_and_the_work_is_kept(
    tmp_path: Path, stages: dict[str, Any], code: int
) -> None:
    stages["raises"] = OSError(code, os.strerror(code))
    with pytest.raises(LlmoptError, match=os.strerror(code)) as raised:
        run(made(tmp_path))
    assert raised.value.exit_code == 1
    assert str(tmp_path) in raised.value.message
    assert "same command resumes" in (raised.value.hint or "")
    (work,) = tmp_path.iterdir()
    assert (work / "state" / "part").read_text() == "hours of work"
    stages["raises"] = None
    run(made(tmp_path))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["q", "s"]


def test_other_errors_of_the_system_are_not_taken_for_it(
    tmp_path: Path, stages: dict[str, Any]
) -> None:
    stages["raises"] = PermissionError(errno.EACCES, "no")
    with pytest.raises(PermissionError):
        run(made(tmp_path))


def test_a_damaged_result_is_made_again(tmp_path: Path, stages: dict[str, Any]) -> None:
    run(made(tmp_path))
    (tmp_path / "q" / "result.txt").unlink()
    assert "q" in run(made(tmp_path))[0]


def test_what_a_user_put_into_a_step_is_never_replaced(
    tmp_path: Path, stages: dict[str, Any]
) -> None:
    run(made(tmp_path))
    (tmp_path / "q" / "notes").mkdir()
    (tmp_path / "q" / "notes" / ".mine").write_text("mine")
    assert run(made(tmp_path))[0] == []  # nothing is to be done there
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(RequestError, match=r"notes/\.mine"):
        run(made(tmp_path, grid="int8"))
    assert sorted(tmp_path.rglob("*")) == before
    (tmp_path / "q" / "notes" / ".mine").unlink()
    (tmp_path / "q" / "notes").rmdir()
    (tmp_path / "s" / "llmopt.run.json").write_text("{}")  # ours, and of no digest
    assert run(made(tmp_path, grid="int8"))[0] == ["q", "q.gate", "s"]


def test_an_edit_of_a_step_further_down_stops_all_before_work(
    tmp_path: Path, stages: dict[str, Any]
) -> None:
    run(made(tmp_path))
    (tmp_path / "s" / "result.txt").write_text("edited")
    with pytest.raises(RequestError, match=r"result\.txt \(changed\)"):
        run(made(tmp_path, grid="int8"))
    assert read_manifest(tmp_path / "q")["settings"]["grid"] == "int4"


def test_the_card_follows_the_manifest_through_the_gate(
    tmp_path: Path, stages: dict[str, Any]
) -> None:
    stages["passed"] = False
    run(made(tmp_path))
    manifest = read_manifest(tmp_path / "q")
    assert verify(tmp_path / "q") == []
    text = (tmp_path / "q" / "README.md").read_text("utf-8")
    assert text == card.render(manifest)
    assert "failed its quality gate" in text
    assert "license: apache-2.0" in text  # as the demo model's own card says
    assert [file["path"] for file in manifest["files"]] == ["result.txt"]
    assert not (tmp_path / "s" / "README.md").exists()


def test_a_card_that_a_kill_took_is_written_again(
    tmp_path: Path, stages: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    run(made(tmp_path / "whole"))
    whole = (tmp_path / "whole" / "q" / "README.md").read_bytes()
    monkeypatch.setattr(records, "write_text", killed_at_the_second_card())
    with pytest.raises(KeyboardInterrupt):
        run(made(tmp_path / "killed"))
    monkeypatch.undo()
    monkeypatch.setattr(pipeline, "load", lambda _: pytest.fail("done already"))
    assert verify(tmp_path / "killed" / "q") == ["missing: README.md"]
    plan = made(tmp_path / "killed")
    gate_only = replace(plan, steps=plan.steps[:2])
    run(gate_only)
    assert (tmp_path / "killed" / "q" / "README.md").read_bytes() == whole
    assert verify(tmp_path / "killed" / "q") == []
    (tmp_path / "killed" / "q" / "README.md").unlink()
    run(gate_only)
    assert (tmp_path / "killed" / "q" / "README.md").read_bytes() == whole


def killed_at_the_second_card() -> object:
    """Writes texts, but stops where a gate's verdict is about to enter the card."""
    original, cards = records.write_text, []

    def write(path: Path, text: str) -> None:
        cards.extend([path] if path.name == "README.md" else [])
        if len(cards) == 2:
            raise KeyboardInterrupt
        original(path, text)

    return write


def test_a_card_that_a_user_changed_is_let_be_and_said(
    tmp_path: Path, stages: dict[str, Any]
) -> None:
    run(made(tmp_path))
    (tmp_path / "q" / "README.md").write_text("my own words")
    for plan in (made(tmp_path), made(tmp_path, gate=["kl.mean < 2"]), made(tmp_path, gate=[])):
        _, ran = run(plan)
        assert "README.md was changed by hand" in " ".join(ran.results[0].notes)
        assert (tmp_path / "q" / "README.md").read_text() == "my own words"
    with pytest.raises(RequestError, match=r"README\.md \(changed\)"):
        run(made(tmp_path, grid="int8"))


def test_nothing_is_made_from_an_edited_manifest(tmp_path: Path, stages: dict[str, Any]) -> None:
    stages["passed"] = False
    run(made(tmp_path))
    path = tmp_path / "q" / "llmopt.json"
    manifest = json.loads(path.read_text())
    manifest["gates"][0]["passed"] = True
    path.write_text(json.dumps(manifest))
    with pytest.raises(RequestError, match="was changed after llmopt wrote it"):
        run(made(tmp_path))
    path.write_text(json.dumps(sealed(manifest)))
    assert any("README.md" in problem for problem in verify(tmp_path / "q"))
