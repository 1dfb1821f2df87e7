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
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any

from llmopt import errors
from llmopt.errors import LlmoptError
from llmopt.evaluate import speed
from llmopt.evaluate.memory import held_memory, peak_memory
from llmopt.specs import RUNTIMES, load

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


class Stopwatch:
    """The helper, as the process that started it sees it."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process

    def measure(self, job: Job) -> dict[str, Any]:
        """Seconds, tokens a second and bytes; see report.results.Speed. Raises what went wrong."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(asdict(job)) + "\n")
        self._process.stdin.flush()
        answer = self._process.stdout.readline()
        found: dict[str, Any] = json.loads(answer) if answer else {"status": "an early end"}
        if "measured" in found:
            measured: dict[str, Any] = found["measured"]
            return measured
        if "status" in found:
            raise LlmoptError(
                f"{job.runtime} ended with {found['status']} while {Path(job.folder).name} was "
                "being timed",
                hint="too little memory, or a fault in the runtime; --no-speed leaves this out",
            )
        kind = getattr(errors, found["kind"], LlmoptError)
        raise kind(found["message"], hint=found["hint"])


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
            answers.write(json.dumps(_answer(job)) + "\n")
            answers.flush()
            os._exit(0)
        status = os.waitpid(child, 0)[1]
        if status:
            answers.write(json.dumps({"status": _in_words(status)}) + "\n")
            answers.flush()


def _answer(job: Job) -> dict[str, Any]:
    try:
        return {"measured": _measured(job)}
    except LlmoptError as error:
        kind = type(error).__name__
        return {"kind": kind, "message": error.message, "hint": error.hint}
    except MemoryError:
        return {"kind": "LlmoptError", "message": "out of memory", "hint": "--no-speed"}
    except Exception as error:
        message = f"unexpected {type(error).__name__}: {error}"
        return {"kind": "LlmoptError", "message": message, "hint": "this is a bug in llmopt"}


def _measured(job: Job) -> dict[str, Any]:
    from llmopt.runtimes.choice import computing_threads, open_engine

    with computing_threads(job.threads):
        engine = open_engine(job.runtime, Path(job.folder), device=job.device, dtype=job.dtype)
        loaded = held_memory()

        def generate(ids: list[int], count: int) -> Iterator[int]:
            return engine.generate(ids, count, ignore_end=True)

        measured = speed.measure(generate, job.prompt, job.new_tokens)
    peak = peak_memory()
    return {
        "first_token_s": measured.first_token,
        "prefill_tokens_per_s": measured.prefill,
        "decode_tokens_per_s": measured.decode,
        "token_p50_s": measured.p50,
        "token_p95_s": measured.p95,
        "weight_bytes": engine.weight_bytes,
        "loaded_bytes": loaded.device if peak.device else loaded.resident,
        "peak_bytes": peak.device or peak.resident,
    }


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
