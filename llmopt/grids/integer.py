"""Integers of 2, 3, 4 or 8 bits: value = float32(scale) * (code - zero) per row and group.

Symmetric: zero = 2**(bits - 1). Asymmetric: zero is any code the format can store, and the range
always includes 0, so that 0 decodes to 0. Scales are float16 values; they are rounded before codes
are chosen, so nothing is lost when they are stored.
"""

from __future__ import annotations

import torch
from torch import Tensor

from llmopt.grids.affine import decode, encode, group_length, round_scale
from llmopt.grids.base import AffineParams, GridOptions
from llmopt.grids.search import search_scales
from llmopt.processor import side_by_side

__all__ = ["decode", "encode", "fit", "fit_block", "levels", "scale_dtype"]

levels: Tensor | None = None
scale_dtype = "float16"

# Elements of a weight that a fit works on at once: a few such buffers stay in the cache.
_CHUNK = 1 << 18


def fit(w: Tensor, options: GridOptions, importance: Tensor | None = None) -> AffineParams:
    """Scales and zeros for w [rows, cols] float32, groups of consecutive columns.

    importance [cols] >= 0 weighs the squared error where options.scale_search is "importance".
    """
    rows, cols = w.shape
    size = group_length(cols, options.group_size)
    groups = cols // size
    blocks = w.reshape(rows, groups, size)
    weights = None if importance is None else importance.view(groups, size).T.unsqueeze(-1)
    scale = torch.empty(rows, groups, dtype=torch.float32, device=w.device)
    zero = torch.empty(rows, groups, dtype=torch.int32, device=w.device)
    step = max(1, _CHUNK // cols)

    def fit_some(start: int) -> None:
        part = slice(start, start + step)
        found_scale, found_zero = _fit(blocks[part].permute(2, 1, 0).contiguous(), options, weights)
        scale[part] = found_scale.T
        zero[part] = found_zero.T

    side_by_side(fit_some, range(0, rows, step))
    return AffineParams(
        bits=options.bits,
        group_size=options.group_size,
        symmetric=options.symmetric,
        scale=scale,
        zero=zero,
    )


def fit_block(
    w: Tensor, options: GridOptions, importance: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Scale float32 [rows] and zero int32 [rows] for one group of columns w [rows, n].

    importance is [n]. Fastest where w is the transpose of a contiguous tensor.
    """
    weights = None if importance is None else importance.unsqueeze(-1)
    step = max(1, _CHUNK // w.shape[1])
    parts = [_fit(part.T.contiguous(), options, weights) for part in torch.split(w, step)]
    return torch.cat([scale for scale, _ in parts]), torch.cat([zero for _, zero in parts])


def _fit(x: Tensor, options: GridOptions, weights: Tensor | None) -> tuple[Tensor, Tensor]:
    """Scale and zero, each of shape x.shape[1:], for groups along the first dimension of x."""
    search, top = options.scale_search, 2**options.bits - 1
    if search != "minmax":
        scale, zero = search_scales(x, options, weights if search == "importance" else None)
    elif options.symmetric:
        # As AutoGPTQ and GPTQModel: the extreme lies half a step past the last positive code.
        scale = round_scale(x.abs().amax(0).mul_(2 / top))
        zero = torch.full_like(scale, 2 ** (options.bits - 1))
    else:
        low, high = x.amin(0).clamp_(max=0), x.amax(0).clamp_(min=0)
        scale = round_scale((high - low).div_(top))
        zero = (-low / scale).round_().clamp_(options.min_zero, top)
    return scale, zero.to(torch.int32)
