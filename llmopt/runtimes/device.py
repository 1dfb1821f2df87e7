"""Which device to compute on."""

from __future__ import annotations

import torch

from llmopt.errors import RequestError


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
    return wanted
