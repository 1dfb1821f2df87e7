"""Peak memory of this process, and of its GPU where it used one."""

from __future__ import annotations

import resource
import sys
from dataclasses import dataclass
from pathlib import Path

_STATUS = Path("/proc/self/status")
_CLEAR_REFS = Path("/proc/self/clear_refs")


@dataclass(frozen=True)
class PeakMemory:
    """Bytes: `resident` in RAM, `device` allocated by torch on the GPU, None without one."""

    resident: int
    device: int | None = None


def reset_peak() -> bool:
    """Start a new peak at what is in use now.

    False where the kernel offers no way to: then peaks count from the start of the process.
    """
    if _uses_cuda():
        import torch

        torch.cuda.reset_peak_memory_stats()
    try:
        _CLEAR_REFS.write_text("5")
    except OSError:
        return False
    return True


def peak_memory() -> PeakMemory:
    """The peak since `reset_peak`, or since the process began."""
    device = None
    if _uses_cuda():
        import torch

        device = torch.cuda.max_memory_allocated()
    return PeakMemory(_peak_resident(), device)


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
