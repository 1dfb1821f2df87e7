"""Which device to compute on, and in which dtype."""

from __future__ import annotations

from typing import Literal

import torch

from llmopt import processor
from llmopt.errors import RequestError

Dtype = Literal["auto", "float32", "bfloat16", "float16"]


def pick_device(wanted: str) -> str:
    """`auto` is the GPU where torch sees one, else the CPU. RequestError for what is not there."""
    if wanted == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(wanted)
    except RuntimeError:
        raise RequestError(f"unknown device {wanted!r}", hint="auto, cpu, cuda or cuda:N") from None
    if device.type not in ("cpu", "cuda"):
        raise RequestError(f"device {wanted!r} is not supported", hint="auto, cpu, cuda or cuda:N")
    if device.type == "cuda" and not torch.cuda.is_available():
        raise RequestError("torch sees no GPU here", hint="--device cpu")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        count = torch.cuda.device_count()
        raise RequestError(f"there is no {wanted}: torch sees {count} of them, from cuda:0")
    return wanted


def computing_dtype(wanted: Dtype, stored: torch.dtype, device: torch.device) -> torch.dtype:
    """`auto` is the dtype of the stored weights on a GPU, and on a CPU the fastest.

    That is bfloat16 for half precision on CPUs that are fast in it, else float32.
    """
    if wanted != "auto":
        dtype: torch.dtype = getattr(torch, wanted)
        return dtype
    if device.type != "cpu":
        return stored
    half = stored in (torch.bfloat16, torch.float16)
    return torch.bfloat16 if half and processor.fast_bfloat16() else torch.float32
