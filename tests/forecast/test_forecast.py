"""What is kept of a machine, and what follows from it for a plan."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from llmopt import forecast, planner
from llmopt.forecast import Host, Speeds
from llmopt.model.effort import Effort, total
from llmopt.recipe import from_data
from llmopt.specs import WORK

HERE = Host(processor="a", cores=2, threads=2, torch="2")
SECONDS = dict.fromkeys(WORK, 2.0)
STEP = {"id": "q", "quantize": {"method": "gptq"}}


def test_seconds_are_amounts_times_seconds_a_unit() -> None:
    effort = total([Effort({"products": 3.0}), Effort({"products": 1.0, "read": 2.0}) * 2])
    assert effort.amounts == {"products": 5.0, "read": 4.0}
    assert forecast.seconds(effort, {"products": 0.5, "read": 10.0}) == 42.5


@pytest.mark.parametrize(
    ("duration", "words"),
    [(0.1, "1 s"), (2.4, "2.5 s"), (7.3, "7 s"), (33.0, "35 s"), (89.0, "90 s"), (91.0, "1.5 min"),
     (723.0, "12 min"), (800.0, "15 min"), (5000.0, "85 min"), (5500.0, "1.5 h"),
     (40 * 3600.0, "40 h"), (60 * 3600.0, "2.5 days")],
)  # fmt: skip
def test_durations_are_said_no_finer_than_they_are_known(duration: float, words: str) -> None:
    assert forecast.in_words(duration) == f"about {words}"


def test_what_was_measured_is_that_machines_alone() -> None:
    assert forecast.speeds(HERE) is None
    forecast.keep(HERE, Speeds(SECONDS, "2026-01-02"))
    assert forecast.speeds(HERE) == Speeds(SECONDS, "2026-01-02")
    others = ({"processor": "b"}, {"cores": 4}, {"threads": 1}, {"torch": "3"})
    assert not any(forecast.speeds(replace(HERE, **other)) for other in others)
    forecast.keep(replace(HERE, threads=1), Speeds(SECONDS, "2026-01-03"))
    assert forecast.speeds(HERE) == Speeds(SECONDS, "2026-01-02")


@pytest.mark.parametrize("spoiled", ["", "[]", "{", '{"KEY": 3}', '{"KEY": {"seconds": {}}}'])
def test_a_spoiled_file_counts_as_not_measured(spoiled: str) -> None:
    forecast.keep(HERE, Speeds(SECONDS, "2026-01-02"))
    forecast.place().write_text(spoiled.replace('"KEY"', json.dumps(HERE.key)))
    assert forecast.speeds(HERE) is None


@pytest.mark.parametrize("value", [float("nan"), -1.0, float("inf"), "fast", None])
def test_a_duration_that_is_none_counts_as_not_measured(value: object) -> None:
    forecast.keep(HERE, Speeds({**SECONDS, "products": value}, "2026-01-02"))  # type: ignore[dict-item]
    assert forecast.speeds(HERE) is None


def test_the_first_step_to_run_begins_the_run(tmp_path: Path) -> None:
    plan = planner.plan(
        *from_data({"version": 1, "model": "demo", "steps": [STEP]}), tmp_path, fetch=False
    )
    states = planner.states(plan)
    speeds = Speeds({**dict.fromkeys(WORK, 0.0), "start": 5.0}, "2026-01-02")
    assert forecast.of_steps(plan, states, speeds) == {"q": 5.0, "q.gate": 0.0}
    done = {**states, "q": planner.State("done")}
    assert forecast.of_steps(plan, done, speeds) == {"q": 0.0, "q.gate": 5.0}
