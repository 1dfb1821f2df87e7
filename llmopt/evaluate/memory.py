"""Memory of this process, and of its GPU where it used one: now, and at its peak."""

from __future__ import annotations

import resource
import sys
from dataclasses import dataclass
from pathlib import Path

import psutil

from llmopt.specs.metrics import Metrics

_STATUS = Path("/proc/self/status")


@dataclass(frozen=True)
class Memory:
    """Bytes: `resident` in RAM, `device` allocated by torch on the GPU, None without one."""

    resident: int
    device: int | None = None


def held_memory() -> Memory:
    """What is in use now."""
    device = None
    if _uses_cuda():
        import torch

        device = torch.cuda.memory_allocated()
    return Memory(psutil.Process().memory_info().rss, device)


def peak_memory() -> Memory:
    """The peak since the process began."""
    device = None
    if _uses_cuda():
        import torch

        device = torch.cuda.max_memory_allocated()
    return Memory(_peak_resident(), device)


def measure(weights: int, loaded: Memory) -> Metrics:
    """At the end of a process's work: `weights` bytes are the model's, `loaded` what it held
    before. On a GPU that was used, torch's there; else the whole process's."""
    peak = peak_memory()
    return {
        "memory.weights": weights,
        "memory.loaded": (loaded.device or 0) if peak.device else loaded.resident,
        "memory.peak": peak.device or peak.resident,
    }


def _peak_resident() -> int:
    try:
        lines = _STATUS.read_text().splitlines()
    except OSError:
        lines = []
    for line in lines:
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def _uses_cuda() -> bool:
    """Whether this process has begun to use a GPU; asking must not begin it."""
    torch = sys.modules.get("torch")
    return torch is not None and bool(torch.cuda.is_initialized())
