"""Activations rounded token by token when a layer computes.

As compressed-tensors computes dynamic per-token activations. Of int8 it divides the whole range,
-128 to 127, by a token's extreme (vLLM's kernel takes 127 for half of it: a scale 0.4% larger).
What one token is rounded to does not depend on the tokens it is computed together with.
"""

from __future__ import annotations

import torch
from torch import Tensor

#: the level at which the extreme of a token lies
_EXTREME = {"int8": 127.5, "fp8": torch.finfo(torch.float8_e4m3fn).max}


def token_levels(x: Tensor, grid: str) -> tuple[Tensor, Tensor]:
    """Levels float32 [..., cols] of the grid "int8" or "fp8", and scales float32 [..., 1].

    Levels of int8 are whole numbers from -128 to 127. A level times its scale is the activation.
    """
    wide, extreme = x.float(), _EXTREME[grid]
    scale = (wide.abs().amax(-1, keepdim=True) / extreme).clamp_(min=1e-12)
    levels = wide / scale
    if grid == "int8":
        return levels.round_().clamp_(-128, 127), scale
    return levels.clamp_(-extreme, extreme).to(torch.float8_e4m3fn).float(), scale


def round_tokens(x: Tensor, grid: str) -> Tensor:
    """Activations [..., cols] at the values that "int8" or "fp8" leave them."""
    levels, scale = token_levels(x, grid)
    return levels.mul_(scale).to(x.dtype)
