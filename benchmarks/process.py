"""Run a command and measure it from outside: wall time, CPU time, peak memory. Linux only.

Two memory counters, because they answer different questions:

- `peak_anonymous`: the largest RssAnon seen in /proc/PID/status, sampled every 20 ms. Memory that
  only this process can give back: heaps, tensors, packed buffers. Pages of mapped files are not in
  it; the kernel drops those when it needs room;
- `peak_resident`: VmHWM of the same file, kept by the kernel, so no peak is missed. Everything
  resident, mapped file pages included.

Both are the command's own process; the tools measured here do their work in one. VmHWM starts
anew at exec, unlike getrusage's ru_maxrss, which begins with the size of the process that forked.
"""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

INTERVAL = 0.02


@dataclass(frozen=True)
class Measured:
    """What a command took: seconds and bytes."""

    code: int
    seconds: float
    cpu_seconds: float
    peak_anonymous: int
    peak_resident: int


def measure(
    command: Sequence[str | Path],
    *,
    environment: Mapping[str, str] | None = None,
    log: Path | None = None,
    check: bool = True,
) -> Measured:
    """Run to the end. Output goes to `log`, or nowhere. SystemExit on failure where `check`."""
    with (log or Path(os.devnull)).open("wb") as sink:
        started = time.perf_counter()
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=sink,
            stderr=subprocess.STDOUT,
            env={**os.environ, **(environment or {})},
        )
        anonymous = resident = 0
        while True:
            pid, status, usage = os.wait4(process.pid, os.WNOHANG)
            if pid:
                break
            now = _memory(process.pid)
            anonymous, resident = max(anonymous, now[0]), max(resident, now[1])
            time.sleep(INTERVAL)
        seconds = time.perf_counter() - started
    process.returncode = os.waitstatus_to_exitcode(status)
    if check and process.returncode:
        raise SystemExit(f"{command[0]} exited with {process.returncode}; its output: {log}")
    return Measured(
        process.returncode, seconds, usage.ru_utime + usage.ru_stime, anonymous, resident
    )


def _memory(pid: int) -> tuple[int, int]:
    """(RssAnon, VmHWM) in bytes; zeros in the moment when the process is gone."""
    found = {"RssAnon": 0, "VmHWM": 0}
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        lines = []
    for line in lines:
        key, _, value = line.partition(":")
        if key in found:
            found[key] = int(value.split()[0]) * 1024
    return found["RssAnon"], found["VmHWM"]
