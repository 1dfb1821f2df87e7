"""Activations rounded token by token when a layer computes.

As compressed-tensors' dynamic per-token activations: the extreme of a token gets the largest code.
What one token is rounded to does not depend on the tokens it is computed together with.
"""

from __future__ import annotations

import torch
from torch import Tensor

_LARGEST = {"int8": 127.0, "fp8": torch.finfo(torch.float8_e4m3fn).max}


def token_levels(x: Tensor, grid: str) -> tuple[Tensor, Tensor]:
    """Levels float32 [..., cols] of the grid "int8" or "fp8", and scales float32 [..., 1].

    Levels of int8 are whole numbers from -127 to 127. A level times its scale is the activation.
    """
    wide, largest = x.float(), _LARGEST[grid]
    scale = (wide.abs().amax(-1, keepdim=True) / largest).clamp_(min=1e-12)
    levels = wide / scale
    if grid == "int8":
        return levels.round_().clamp_(-largest, largest), scale
    return levels.clamp_(-largest, largest).to(torch.float8_e4m3fn).float(), scale


def round_tokens(x: Tensor, grid: str) -> Tensor:
    """Activations [..., cols] at the values that "int8" or "fp8" leave them."""
    levels, scale = token_levels(x, grid)
    return levels.mul_(scale).to(x.dtype)
