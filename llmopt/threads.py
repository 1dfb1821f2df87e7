"""How many processor threads to compute with, and that they wait asleep. No torch."""

from __future__ import annotations

import os
from pathlib import Path

_QUOTA = Path("/sys/fs/cgroup/cpu.max")
_OLD_QUOTA = Path("/sys/fs/cgroup/cpu/cpu.cfs_quota_us")
_OLD_PERIOD = Path("/sys/fs/cgroup/cpu/cpu.cfs_period_us")


def usable() -> int:
    """The processors that this process may keep busy: its affinity, and its container's quota."""
    if hasattr(os, "sched_getaffinity"):
        count = len(os.sched_getaffinity(0))
    else:
        count = os.cpu_count() or 1
    quota = _quota()
    return count if quota is None else max(1, min(count, int(quota)))


def usual() -> int:
    """What torch takes from the environment, where `settle` has set it."""
    said = os.environ.get("OMP_NUM_THREADS", "").partition(",")[0]
    return int(said) if said.isdecimal() and int(said) > 0 else usable()


def settle() -> None:
    """Set what OpenMP reads when torch loads it; what the user has set stays.

    Threads that wait for each other spin by default: on a machine that others use, too, that
    takes their time and the own threads'.
    """
    os.environ.setdefault("OMP_NUM_THREADS", str(usable()))
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")


def _quota() -> float | None:
    """Processors' worth of time that the container's control group allows; None: all."""
    try:
        if _QUOTA.is_file():
            quota, period = _QUOTA.read_text("utf-8").split()[:2]
        else:
            quota, period = _OLD_QUOTA.read_text("utf-8"), _OLD_PERIOD.read_text("utf-8")
        return float(quota) / float(period) if float(quota) > 0 else None
    except (OSError, ValueError, ZeroDivisionError):  # "max", or no such file
        return None
