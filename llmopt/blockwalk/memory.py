"""Giving freed memory back to the system."""

from __future__ import annotations

import ctypes

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
_LARGE, _SPARE = 4 << 20, 64 << 20


def steady() -> None:
    """Give every large buffer pages of its own, where the C library can, from here on.

    glibc raises the size from which it does so to that of the largest buffer that was freed, up to
    32 MiB. Weights then come from its heaps, and what a walk holds at its peak is a matter of how
    those happen to be cut up: it differed by a fifth from run to run. Smaller ones come from heaps,
    which keep 64 MiB of what was freed until `release`, where glibc would keep 128 KiB.
    """
    set_option = getattr(ctypes.CDLL(None), "mallopt", None)
    if set_option is not None:
        set_option(_M_MMAP_THRESHOLD, _LARGE)
        set_option(_M_TRIM_THRESHOLD, _SPARE)


def release() -> None:
    """Return freed heap pages, where the C library can: glibc keeps them for itself otherwise.

    Without it a walk's resident memory creeps up with every block, though nothing leaks.
    """
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)
