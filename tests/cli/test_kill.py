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


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, str], float]:
    """What a run that nobody kills leaves, and how long it takes."""
    folder = tmp_path_factory.mktemp("whole")
    started = time.monotonic()
    assert run(folder)
    return digests(folder), time.monotonic() - started


@pytest.mark.slow(part="kills")
@pytest.mark.parametrize("attempt", range(10))
def test_killed_at_random_moments(
    attempt: int, whole: tuple[dict[str, str], float], tmp_path: Path
) -> None:
    expected, usual = whole
    moments = random.Random(attempt)
    # one moment in each tenth of the time, then others, and at last it is left alone
    at = [(attempt + moments.random()) / 10, moments.uniform(0.3, 0.9), moments.uniform(0.3, 0.9)]
    for faster in (1, 2, 4, 8):  # than when it was timed: others may have had the machine then
        folder = tmp_path / str(faster)
        killed = [not run(folder, share * usual / faster) for share in at]
        if any(killed):
            break
    assert any(killed)
    assert run(folder)
    assert digests(folder) == expected


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
