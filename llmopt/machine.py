"""The machine that a step ran on, for its run record. No torch unless it is there already."""

from __future__ import annotations

import os
import platform
import sys
from pathlib import Path

import psutil

_CPUINFO = Path("/proc/cpuinfo")
#: what a container's control group allows, in its newer and its older form
_LIMITS = (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"))


def describe() -> dict[str, object]:
    """JSON; see report.comparison.Machine."""
    return {
        "processor": processor(),
        "architecture": platform.machine(),
        "system": f"{platform.system()} {platform.release()}",
        "cores": cores(),
        "memory_bytes": psutil.virtual_memory().total,
        "gpus": _gpus(),
    }


def processor(cpuinfo: Path = _CPUINFO) -> str:
    """The model's name, as its maker has it where the system tells."""
    try:
        lines = cpuinfo.read_text("utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    for key in ("model name", "Model", "cpu model", "Hardware"):
        for line in lines:
            name, _, value = line.partition(":")
            if name.strip() == key and value.strip():
                return " ".join(value.split())
    return platform.processor() or platform.machine() or "unknown"


def cores() -> int:
    """How many this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def memory() -> int:
    """Bytes that this process may hold: the machine's, or what its container allows."""
    found = int(psutil.virtual_memory().total)
    for path in _LIMITS:
        try:
            found = min(found, int(path.read_text("utf-8")))
        except (OSError, ValueError):  # no such file, or "max"
            continue
    return found


def _gpus() -> list[str]:
    torch = sys.modules.get("torch")
    if torch is None or not torch.cuda.is_available():
        return []
    return [str(torch.cuda.get_device_name(i)) for i in range(torch.cuda.device_count())]
