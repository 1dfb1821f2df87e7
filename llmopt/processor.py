"""What the CPU at hand computes fast, and with how many threads: one answer for all."""

from __future__ import annotations

import os
import platform
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import TypeVar

import torch

T = TypeVar("T")
R = TypeVar("R")

#: oneDNN's name of the newest instructions it may use, and what says so
_ONEDNN_LIMITS = ("ONEDNN_MAX_CPU_ISA", "DNNL_MAX_CPU_ISA")
#: what else in the environment chooses among kernels that add in different orders
_KERNEL_CHOICES = (*_ONEDNN_LIMITS, "ATEN_CPU_CAPABILITY", "MKL_ENABLE_INSTRUCTIONS", "MKL_CBWR")
#: the lines of /proc/cpuinfo that tell one kind of processor from another
_KINDS = ("vendor_id", "cpu family", "model", "CPU implementer", "CPU part")


def fast_bfloat16() -> bool:
    """Whether bfloat16 matrix products are faster than float32's: where the CPU has AMX.

    Without its instructions a dense bfloat16 product takes several times as long. What the
    environment keeps torch or oneDNN from using counts as not there.
    """
    wide = torch.backends.cpu.get_cpu_capability() not in ("DEFAULT", "NO AVX", "AVX2")
    limit = _onednn_limit()
    return torch.cpu._is_amx_tile_supported() and wide and (not limit or "AMX" in limit)


def fast_int8() -> bool:
    """Whether int8 matrix products are faster than float32's: where the CPU has AVX-512 VNNI.

    Without it torch computes them one by one.
    """
    limit = _onednn_limit()
    return torch.cpu._is_vnni_supported() and limit not in ("SSE41", "AVX", "AVX2", "AVX512_CORE")


@contextmanager
def computing_threads(count: int | None) -> Iterator[None]:
    """Let torch compute with this many threads inside; None: as it is."""
    before = torch.get_num_threads()
    torch.set_num_threads(count or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def side_by_side(work: Callable[[T], R], parts: Sequence[T]) -> list[R]:
    """work(part) for each part, in order: one thread computes each, as many as torch may use."""
    threads = torch.get_num_threads()
    if min(threads, len(parts)) == 1:
        return [work(part) for part in parts]
    with ThreadPoolExecutor(threads, initializer=lambda: torch.set_num_threads(1)) as pool:
        try:
            return list(pool.map(work, parts))
        finally:
            pool.shutdown(cancel_futures=True)
            torch.set_num_threads(threads)  # for threads to come


def identity() -> dict[str, str]:
    """What the last digits of a sum depend on, beside software and number of threads."""
    choices = {name: os.environ[name] for name in _KERNEL_CHOICES if name in os.environ}
    return {
        "kind": _kind(),
        "capability": torch.backends.cpu.get_cpu_capability(),
        "bfloat16": str(fast_bfloat16()),
        **choices,
    }


def _onednn_limit() -> str:
    """In capitals; empty where oneDNN may use all that there is."""
    value = next((os.environ[name] for name in _ONEDNN_LIMITS if os.environ.get(name)), "")
    return "" if value.upper() in ("ALL", "DEFAULT") else value.upper()


@cache
def _kind() -> str:
    info = Path("/proc/cpuinfo")
    if not info.is_file():
        return platform.processor() or platform.machine()
    first = info.read_text("utf-8", errors="replace").partition("\n\n")[0]
    pairs = (line.partition(":") for line in first.splitlines())
    return " ".join(value.strip() for name, _, value in pairs if name.strip() in _KINDS)
