"""kill -9 at random moments, then the same command: the same bytes, and nothing stray."""

from __future__ import annotations

import hashlib
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from llmopt.artifact import RUN_RECORD

COMMAND = [
    sys.executable, "-m", "llmopt", "quantize", "demo", "-o", "out", "--sequences", "48",
    "--length", "256", "--gate", "kl.mean < 90", "--quiet",
]  # fmt: skip


def digests(folder: Path) -> dict[str, str]:
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != RUN_RECORD
    }


def run(folder: Path, seconds: float | None = None) -> bool:
    """Run the command; kill it after `seconds`. Whether it finished."""
    folder.mkdir(exist_ok=True)
    process = subprocess.Popen(COMMAND, cwd=folder, stderr=subprocess.PIPE)
    try:
        _, err = process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGKILL)
        process.communicate()
        return False
    assert process.returncode == 0, err
    return True


@pytest.mark.slow
def test_killed_at_ten_random_moments(tmp_path: Path) -> None:
    started = time.monotonic()
    assert run(tmp_path / "whole")
    usual = time.monotonic() - started
    expected = digests(tmp_path / "whole")
    moments = random.Random(0)
    killed = 0
    for attempt in range(10):
        folder = tmp_path / f"killed-{attempt}"
        killed += not run(folder, moments.uniform(0.1, 1.0) * usual)
        while not run(folder, moments.uniform(0.5, 1.5) * usual):
            killed += 1
        assert digests(folder) == expected
    assert killed >= 5


def test_interrupt_and_terminate_have_their_exit_codes(tmp_path: Path) -> None:
    for signal_, code in ((signal.SIGINT, 130), (signal.SIGTERM, 143)):
        process = subprocess.Popen(
            [*COMMAND[:-1], "--sequences", "400"], cwd=tmp_path, stderr=subprocess.PIPE, text=True,
            # a shell that started the tests in the background has SIGINT ignored
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
        )  # fmt: skip
        assert process.stderr is not None
        process.stderr.readline()  # the step has begun
        process.send_signal(signal_)
        _, err = process.communicate(timeout=60)
        assert process.returncode == code, err
        assert "the same command resumes" in err
        assert "Traceback" not in err
