"""Run a command and measure it from outside: wall time, CPU time, peak memory. Linux only.

Three memory counters, because they answer different questions:

- `peak_anonymous`: the largest RssAnon seen in /proc/PID/status, sampled every 20 ms. Memory that
  only this process can give back: heaps, tensors, packed buffers. Pages of mapped files are not in
  it; the kernel drops those when it needs room;
- `peak_resident`: VmHWM of the same file, kept by the kernel, so no peak is missed. Everything
  resident, mapped file pages included.

These are of the command's own process; the tools measured here do their work in one. VmHWM starts
anew at exec, unlike getrusage's ru_maxrss, which begins with the size of the process that forked.

- unique memory, where a `Watch` is given: Private_Clean and Private_Dirty of
  /proc/PID/smaps_rollup, summed over the command and all that it started, so pages that a child
  shares with its parent do not count twice. The kernel walks page tables for it: a process of
  10 GB takes it 0.1 s, so it is read as often as costs 3% of a core. RssAnon, of which the same
  holds as long as nothing is shared, is sampled in between.
"""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

INTERVAL = 0.02
#: the share of a core that reading unique memory may take
_SHARE = 0.03


@dataclass(frozen=True)
class Sample:
    """A command and all that it started, `at` seconds after it began.

    unique: bytes of memory. cpu_seconds: so far. disk: bytes of all files in the watched folder.
    """

    at: float
    unique: int
    cpu_seconds: float
    disk: int = 0


@dataclass
class Watch:
    """What is seen of a command while it runs.

    folder: where it writes. lines: what it printed where there is a log, each with the seconds
    since it began.
    """

    folder: Path | None = None
    samples: list[Sample] = field(default_factory=list)
    lines: list[tuple[float, str]] = field(default_factory=list)
    _anonymous: list[tuple[float, int]] = field(default_factory=list)
    _next: float = 0.0
    _rest: str = ""

    def hear(self, now: float, printed: str) -> bool:
        """Note what was printed since the last time; whether a line was."""
        *whole, self._rest = (self._rest + printed).split("\n")
        self.lines += ((now, line) for line in whole)
        return bool(whole)

    def look(self, pid: int, now: float, printed: str, anonymous: int) -> None:
        """Note that, and the memory, if it is time for it."""
        self._anonymous.append((now, anonymous))
        if self.hear(now, printed) or now >= self._next:
            began = time.perf_counter()
            found = [(_unique(one), _cpu_seconds(one)) for one in _family(pid)]
            unique, cpu = (sum(each) for each in zip(*found, strict=True))
            disk = _bytes_in(self.folder) if self.folder else 0
            self.samples.append(Sample(now, int(unique), cpu, disk))
            self._next = now + (time.perf_counter() - began) / _SHARE

    def peak(self, begin: float = 0.0, end: float = float("inf")) -> int:
        """The most unique memory in a part of the run, in bytes; 0 where nothing was seen."""
        seen = [*self._anonymous, *((each.at, each.unique) for each in self.samples)]
        return max((size for at, size in seen if begin <= at <= end), default=0)

    def cpu_seconds(self, begin: float, end: float) -> float:
        """What a part of the run took, as far as it was sampled."""
        found = [each.cpu_seconds for each in self.samples if begin <= each.at <= end]
        return max(found) - min(found) if found else 0.0

    def disk(self, begin: float, end: float) -> int:
        """How many bytes more than at its beginning there were in a part of the run, at most."""
        found = [each.disk for each in self.samples if begin <= each.at <= end]
        return max(found) - found[0] if found else 0

    def when(self, text: str) -> float | None:
        """When a line with this text was printed first."""
        return next((at for at, line in self.lines if text in line), None)


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
    watch: Watch | None = None,
) -> Measured:
    """Run to the end. Output goes to `log`, or nowhere. SystemExit on failure where `check`."""
    log = log or Path(os.devnull)
    with log.open("wb") as sink, log.open() as printed:
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
            if watch is not None:
                watch.look(process.pid, time.perf_counter() - started, printed.read(), now[0])
            time.sleep(INTERVAL)
        seconds = time.perf_counter() - started
        if watch is not None:
            watch.hear(seconds, printed.read())
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


def _family(pid: int) -> list[int]:
    """A process and all that it started, and those, as far as they still run."""
    found, parents = [pid], _parents()
    for one in found:
        found += (child for child, parent in parents.items() if parent == one)
    return found


def _parents() -> dict[int, int]:
    """The parent of every process."""
    found = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            # after the name, which may hold anything: the state, then the parent
            found[int(stat.parent.name)] = int(stat.read_text().rpartition(")")[2].split()[1])
        except OSError:
            continue
    return found


def _bytes_in(folder: Path) -> int:
    """Of the files below, those of several names once."""
    sizes = {}
    for path in folder.rglob("*"):
        try:
            found = path.lstat()
        except OSError:
            continue  # gone by now
        sizes[found.st_ino] = found.st_size if path.is_file() else 0
    return sum(sizes.values())


def _cpu_seconds(pid: int) -> float:
    """Of a process, and of those of its children that ended; 0 when it is gone."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0.0
    return sum(map(int, fields[11:15])) / os.sysconf("SC_CLK_TCK")


def _unique(pid: int) -> int:
    """Bytes that only this process has; 0 in the moment when it is gone."""
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    except OSError:
        return 0
    private = (line.split()[1] for line in lines if line.startswith("Private_"))
    return sum(int(size) * 1024 for size in private)
