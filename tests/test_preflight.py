"""What a plan could not end with is refused before it begins."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from llmopt import artifact, machine, planner, preflight
from llmopt.errors import RequestError
from llmopt.planner import Plan
from llmopt.recipe import from_data
from llmopt.step import RunOptions

STEPS = [
    {"id": "q", "quantize": {"method": "rtn", "gate": []}},
    {"id": "r", "quantize": {"method": "rtn", "grid": "int8", "gate": []}},
]


class Usage(NamedTuple):
    total: int
    used: int
    free: int


@pytest.fixture
def free(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """free(n): every disk has n bytes free."""

    def set_free(count: int) -> None:
        usage = Usage(1 << 50, 0, count)
        monkeypatch.setattr(preflight.shutil, "disk_usage", lambda _: usage)

    return set_free


def planned(folder: Path, *steps: dict[str, Any], **data: Any) -> Plan:
    recipe = {"version": 1, "model": "demo", "data": data, "steps": list(steps or STEPS)}
    made = planner.plan(*from_data(recipe), folder, fetch=False)
    artifact.open_artifact("model", made.model.folder)
    return made


def needed(plan: Plan) -> int:
    """What the plan's two steps take at most: the first one's result, the second one's work."""
    first, second = plan.steps
    kept = sum(change.bytes for change in first.changes)
    return max(first.footprint.disk_bytes, kept + second.footprint.disk_bytes)


def test_disk_is_compared_with_all_steps_before_any_work(
    tmp_path: Path, free: Callable[[int], None]
) -> None:
    plan = planned(tmp_path / "deep" / "out")
    free(needed(plan))
    preflight.check(plan, RunOptions("cpu"))
    free(needed(plan) - 1)
    with pytest.raises(RequestError, match="free, and the steps to run need") as raised:
        preflight.check(plan, RunOptions("cpu"))
    assert str(tmp_path) in raised.value.message
    assert raised.value.exit_code == 2
    assert list(tmp_path.iterdir()) == []


def test_what_a_killed_run_left_is_not_needed_again(
    tmp_path: Path, free: Callable[[int], None]
) -> None:
    plan = planned(tmp_path)
    last = planner.states(plan)["r"].key
    with artifact.workspace(plan.outputs["r"], last or "") as folder:
        (folder / "part").write_bytes(bytes(1 << 20))
    free(needed(plan) - (1 << 20))
    preflight.check(plan, RunOptions("cpu"))


def test_activations_in_a_file_count(tmp_path: Path, free: Callable[[int], None]) -> None:
    step = {"id": "q", "quantize": {"method": "gptq", "gate": []}}
    data = {"calibration": {"source": "demo", "sequences": 512}}
    usual = planned(tmp_path, step, **data)
    disk = usual.by_id("q").footprint.disk_bytes
    free(disk)
    preflight.check(usual, RunOptions("cpu"))
    memory = usual.by_id("q").footprint.memory_bytes - 1
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(machine, "memory", lambda: memory)
        in_file = planned(tmp_path, step, **data)
    with pytest.raises(RequestError, match="need"):
        preflight.check(in_file, RunOptions("cpu"))


def test_nothing_to_do_needs_no_disk_and_no_device(
    tmp_path: Path, free: Callable[[int], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = planned(tmp_path)
    done = {step.id: planner.State("done", "k") for step in plan.steps}
    monkeypatch.setattr(preflight, "states", lambda _: done)
    free(0)
    preflight.check(plan, RunOptions("warp"))
