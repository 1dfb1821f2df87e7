"""The threads that are used by default, and what the user's own settings do to that."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from llmopt import threads


@pytest.fixture(autouse=True)
def _four_cores(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1, 2, 5}, raising=False)
    for name in ("_QUOTA", "_OLD_QUOTA", "_OLD_PERIOD"):
        monkeypatch.setattr(threads, name, tmp_path / name)
    for name in ("OMP_NUM_THREADS", "OMP_WAIT_POLICY"):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize(
    ("quota", "count"),
    [("max 100000", 4), ("250000 100000", 2), ("50000 100000", 1), ("900000 100000", 4), ("", 4)],
)
def test_a_containers_quota_counts(tmp_path: Path, quota: str, count: int) -> None:
    (tmp_path / "_QUOTA").write_text(quota)
    assert threads.usable() == count


def test_an_old_containers_quota_counts_too(tmp_path: Path) -> None:
    assert threads.usable() == 4
    (tmp_path / "_OLD_QUOTA").write_text("200000\n")
    (tmp_path / "_OLD_PERIOD").write_text("100000\n")
    assert threads.usable() == 2
    (tmp_path / "_OLD_QUOTA").write_text("-1\n")
    assert threads.usable() == 4


def test_threads_wait_asleep_unless_the_user_says_otherwise(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    threads.settle()
    assert os.environ["OMP_NUM_THREADS"] == "3"
    assert os.environ["OMP_WAIT_POLICY"] == "PASSIVE"
    monkeypatch.setenv("OMP_WAIT_POLICY", "ACTIVE")
    threads.settle()
    assert os.environ["OMP_WAIT_POLICY"] == "ACTIVE"
