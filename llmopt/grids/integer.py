"""Integers of 2, 3, 4 or 8 bits: value = float32(scale) * (code - zero) per row and group.

Symmetric: zero = 2**(bits - 1). Asymmetric: zero is any code the format can store, and the range
always includes 0, so that 0 decodes to 0. Scales are float16 values; they are rounded before codes
are chosen, so nothing is lost when they are stored.
"""

from __future__ import annotations

import torch
from torch import Tensor

from llmopt.errors import RequestError
from llmopt.grids.base import AffineParams, GridOptions
from llmopt.grids.search import search_scales

_HALF_MAX = 65504.0
_HALF_TINY = 2.0**-24
# Elements of a weight that a fit works on at once: a few such buffers stay in the cache.
_CHUNK = 1 << 18


def fit(w: Tensor, options: GridOptions, importance: Tensor | None = None) -> AffineParams:
    """Scales and zeros for w [rows, cols] float32, groups of consecutive columns.

    importance [cols] >= 0 weighs the squared error where options.scale_search is "importance".
    """
    rows, cols = w.shape
    size = group_length(cols, options.group_size)
    groups = cols // size
    blocks = w.view(rows, groups, size)
    weights = None if importance is None else importance.view(groups, size).T.unsqueeze(-1)
    scale = torch.empty(rows, groups, dtype=torch.float32, device=w.device)
    zero = torch.empty(rows, groups, dtype=torch.int32, device=w.device)
    step = max(1, _CHUNK // cols)
    for start in range(0, rows, step):
        part = slice(start, start + step)
        x = blocks[part].permute(2, 1, 0).contiguous()
        found_scale, found_zero = _fit(x, options, weights)
        scale[part] = found_scale.T
        zero[part] = found_zero.T
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

    Fastest where w is the transpose of a contiguous tensor.
    """
    weights = None if importance is None else importance.unsqueeze(-1)
    columns = w.T
    step = max(1, _CHUNK // w.shape[1])
    parts = [
        _fit(columns[:, start : start + step].contiguous(), options, weights)
        for start in range(0, w.shape[0], step)
    ]
    return torch.cat([scale for scale, _ in parts]), torch.cat([zero for _, zero in parts])


def encode(w: Tensor, params: AffineParams) -> Tensor:
    """Nearest codes, uint8 [rows, cols]."""
    scale, zero, shape = _per_column(params, w.shape[1])
    codes = (w.reshape(shape) / scale).round_().add_(zero).clamp_(0, 2**params.bits - 1)
    return codes.to(torch.uint8).view(w.shape)


def decode(codes: Tensor, params: AffineParams) -> Tensor:
    """The float32 values [rows, cols] that `codes` stand for: scale * (code - zero)."""
    scale, zero, shape = _per_column(params, codes.shape[1])
    return codes.reshape(shape).to(torch.float32).sub_(zero).mul_(scale).view(codes.shape)


def round_scale(scale: Tensor) -> Tensor:
    """The nearest usable float16 values, as float32: finite, and not zero unless exactly zero.

    A scale of exactly 0 belongs to a group with nothing in it and becomes 1.
    """
    magnitude = scale.abs().clamp(_HALF_TINY, _HALF_MAX).to(torch.float16).to(torch.float32)
    return torch.where(scale == 0, torch.ones_like(scale), magnitude.copysign(scale))


def group_length(cols: int, group_size: int) -> int:
    """Columns in a group, or RequestError where groups do not fill the width."""
    size = cols if group_size == -1 else group_size
    if size < 1 or cols % size:
        raise RequestError(f"group size {group_size} does not divide {cols} input channels")
    return size


def _fit(x: Tensor, options: GridOptions, weights: Tensor | None) -> tuple[Tensor, Tensor]:
    """Scale and zero, each of shape x.shape[1:], for groups along the first dimension of x."""
    search = options.scale_search
    if search != "minmax":
        scale, zero = search_scales(x, options, weights if search == "importance" else None)
    elif options.symmetric:
        # As GPTQ has it: max |w| lands halfway past the last positive code.
        scale = x.abs().amax(0).mul_(2 / (2**options.bits - 1))
        zero = torch.full_like(scale, 2 ** (options.bits - 1))
    else:
        low, high = x.amin(0).clamp_(max=0), x.amax(0).clamp_(min=0)
        scale = (high - low).div_(2**options.bits - 1)
        zero = (-low / round_scale(scale)).round_().clamp_(options.min_zero, 2**options.bits - 1)
    return round_scale(scale), zero.to(torch.int32)


def _per_column(params: AffineParams, cols: int) -> tuple[Tensor, Tensor, tuple[int, ...]]:
    """Scale and zero that broadcast over columns reshaped as the returned shape."""
    if params.group_index is not None:
        index = params.group_index.to(torch.int64)
        return params.scale[:, index], params.zero[:, index], (-1, cols)
    groups = params.scale.shape[1]
    return params.scale.unsqueeze(-1), params.zero.unsqueeze(-1), (-1, groups, cols // groups)
