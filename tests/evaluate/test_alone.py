"""Speed and memory of a model are its own, whatever else this process holds or does."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from llmopt.errors import LlmoptError, RequestError
from llmopt.evaluate import alone
from llmopt.specs.metrics import PROBES, value_of
from tests import models


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> alone.Job:
    folder = tmp_path_factory.mktemp("alone") / "model"
    models.save_with_tokenizer(folder, "qwen3")
    return alone.Job(
        runtime="torch", folder=str(folder), device="cpu", dtype="float32", threads=1,
        prompt=[1, 2, 3], new_tokens=3,
    )  # fmt: skip


@pytest.fixture(scope="module")
def watch() -> Iterator[alone.Stopwatch]:
    with alone.stopwatch() as found:
        yield found


def test_what_else_is_in_memory_does_not_count(watch: alone.Stopwatch, job: alone.Job) -> None:
    first = watch.measure(job)
    ballast = bytearray(b"x" * (300 << 20))
    again = watch.measure(job)
    del ballast
    before, after = ({k: value_of(found[k]) for k in found} for found in (first, again))
    for key in ("memory.loaded", "memory.peak"):
        assert after[key] == pytest.approx(before[key], rel=0.05)
        assert before[key] < 500e6
    assert before["memory.weights"] <= before["memory.loaded"] <= before["memory.peak"]
    assert before["speed.decode"] > 0
    assert [*first] == [metric.name for metric in PROBES["speed"].metrics]


def test_a_refusal_comes_through(watch: alone.Stopwatch, job: alone.Job, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(RequestError):
        watch.measure(replace(job, folder=str(tmp_path)))


def test_a_crash_is_said_and_takes_nothing_along(
    job: alone.Job, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    crash = tmp_path / "sitecustomize.py"
    crash.write_text(
        "import os, signal\n"
        "os.register_at_fork(after_in_child=lambda: os.kill(os.getpid(), signal.SIGSEGV))\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    with alone.stopwatch() as watch, pytest.raises(LlmoptError, match="ended with signal SIGSEGV"):
        watch.measure(job)


def test_nothing_is_left_running(job: alone.Job) -> None:
    with alone.stopwatch() as watch:
        process = watch._process
    with pytest.raises(ProcessLookupError):
        os.killpg(process.pid, signal.SIGTERM)


def test_a_module_in_the_current_folder_is_not_run(
    job: alone.Job, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "json.py").write_text("import os; os._exit(9)")
    monkeypatch.chdir(tmp_path)
    with alone.stopwatch() as watch, pytest.raises(RequestError):
        watch.measure(replace(job, folder=str(tmp_path)))
