"""Speed and memory of models, each alone in a process of its own.

What else this process holds (a base model, results, what Python has not given back) would count
as theirs, and take caches and memory bandwidth from them. A helper imports the libraries once and
forks for each model, so that every model starts from the same state, and an engine that crashes
takes nothing along.
"""

from __future__ import annotations

import ctypes
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import IO

from llmopt import errors
from llmopt.errors import LlmoptError
from llmopt.evaluate import memory, speed
from llmopt.specs import RUNTIMES, load
from llmopt.specs.metrics import Metrics

_DIE_WITH_PARENT = 1  # PR_SET_PDEATHSIG of prctl(2)


@dataclass(frozen=True)
class Job:
    """One model to time: how it is opened, the tokens before, and how many are generated."""

    runtime: str
    folder: str
    device: str
    dtype: str
    threads: int
    prompt: list[int]
    new_tokens: int


@dataclass(frozen=True)
class _Answer:
    """What came of a job: metrics, an error of ours by the name of its class, or, where its
    process died, how it ended."""

    metrics: Metrics = field(default_factory=dict)
    error: str | None = None
    message: str = ""
    hint: str | None = None
    status: str | None = None


class Stopwatch:
    """The helper, as the process that started it sees it."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process

    def measure(self, job: Job) -> Metrics:
        """What the table of probes says of speed and memory. Raises what went wrong."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(asdict(job)) + "\n")
        self._process.stdin.flush()
        answer = self._process.stdout.readline()
        found = _Answer(**json.loads(answer)) if answer else _Answer(status="an early end")
        if found.status is not None:
            raise LlmoptError(
                f"{job.runtime} ended with {found.status} while {Path(job.folder).name} was "
                "being timed",
                hint="too little memory, or a fault in the runtime; --no-speed leaves this out",
            )
        if found.error is not None:
            raise getattr(errors, found.error, LlmoptError)(found.message, hint=found.hint)
        return found.metrics


@contextmanager
def stopwatch() -> Iterator[Stopwatch]:
    """A helper that lives while the block runs."""
    path = os.pathsep.join(filter(None, sys.path))  # and not the current folder
    process = subprocess.Popen(
        [sys.executable, "-P", "-m", __name__],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": path},
        start_new_session=True,
    )
    try:
        yield Stopwatch(process)
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        for stream in (process.stdin, process.stdout):
            if stream is not None:
                stream.close()


def _serve(jobs: IO[str], answers: IO[str]) -> None:
    """Fork for each job; the child writes one line, or dies and the helper does."""
    for line in jobs:
        job = Job(**json.loads(line))
        load(RUNTIMES[job.runtime].module)
        child = os.fork()
        if child == 0:
            _end_with_parent()
            _send(_answer(job), answers)
            os._exit(0)
        status = os.waitpid(child, 0)[1]
        if status:
            _send(_Answer(status=_in_words(status)), answers)


def _send(answer: _Answer, answers: IO[str]) -> None:
    answers.write(json.dumps(asdict(answer)) + "\n")
    answers.flush()


def _answer(job: Job) -> _Answer:
    try:
        return _Answer(metrics=_measured(job))
    except LlmoptError as error:
        return _Answer(error=type(error).__name__, message=error.message, hint=error.hint)
    except MemoryError:
        return _Answer(error="LlmoptError", message="out of memory", hint="--no-speed")
    except Exception as error:
        message = f"unexpected {type(error).__name__}: {error}"
        return _Answer(error="LlmoptError", message=message, hint="this is a bug in llmopt")


def _measured(job: Job) -> Metrics:
    from llmopt.processor import computing_threads
    from llmopt.runtimes.choice import open_engine

    with computing_threads(job.threads):
        engine = open_engine(job.runtime, Path(job.folder), device=job.device, dtype=job.dtype)
        loaded = memory.held_memory()

        def generate(ids: list[int], count: int) -> Iterator[int]:
            return engine.generate(ids, count, ignore_end=True)

        speeds = speed.measure(generate, job.prompt, job.new_tokens)
    return {**speeds, **memory.measure(engine.weight_bytes, loaded)}


def _end_with_parent() -> None:
    """Ask Linux to end this process with the one that started it, however that ends."""
    prctl = getattr(ctypes.CDLL(None), "prctl", None)
    if prctl is not None:
        prctl(_DIE_WITH_PARENT, signal.SIGKILL)


def _in_words(status: int) -> str:
    code = os.waitstatus_to_exitcode(status)
    return f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"


def main() -> None:
    """Serve jobs from stdin; what engines print goes to stderr."""
    _end_with_parent()
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    _serve(sys.stdin, answers)


if __name__ == "__main__":
    main()
