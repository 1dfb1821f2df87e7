"""AWQ's rounding: to nearest, each group clipped to where its outputs lose least.

The scales that AWQ is known for are a transform (methods/transform/awq.py), which comes first.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from llmopt.errors import LlmoptError
from llmopt.grids.affine import group_length
from llmopt.grids.base import AffineParams, Grid, GridOptions, QuantizedTensor
from llmopt.linalg import InputStatistics
from llmopt.methods.quantize.base import check_weight, grid_of
from llmopt.methods.quantize.settings import AwqSettings

# Shares of a group's range that are tried, as AutoAWQ does.
_CLIPS = tuple(1 - step / 20 for step in range(10))
_CHUNK = 1 << 22


def solve(
    weight: Tensor,
    statistics: InputStatistics | None,
    options: GridOptions,
    settings: AwqSettings,  # noqa: ARG001  # one protocol for all methods
) -> QuantizedTensor:
    """The nearest codes for weight [rows, cols] float32 in the range best for each group.

    A range is judged by d^T H_gg d, d being the errors that it leaves in the group and H_gg the
    group's block of E[x x^T]; the importance-weighted search's range is among those tried.
    """
    check_weight(weight)
    if statistics is None or statistics.tokens == 0:
        raise LlmoptError("awq needs calibration statistics", hint="give calibration text")
    cols = weight.shape[1]
    size = group_length(cols, options.group_size)
    starts = range(0, cols, size)
    hessian = torch.stack([statistics.within(slice(i, i + size)) for i in starts])
    step = max(1, _CHUNK // cols)
    parts = [_fit(w, statistics, hessian, options) for w in torch.split(weight, step)]
    params = replace(
        parts[0],
        scale=torch.cat([part.scale for part in parts]),
        zero=torch.cat([part.zero for part in parts]),
    )
    codes = grid_of(options).encode(weight, params)
    return QuantizedTensor(grid=options.grid, codes=codes, params=params)


def _fit(
    weight: Tensor, statistics: InputStatistics, hessian: Tensor, options: GridOptions
) -> AffineParams:
    """The best parameters for some rows; hessian [groups, size, size]."""
    grid = grid_of(options)
    best = grid.fit(weight, replace(options, scale_search="importance"), statistics.diagonal)
    least = _losses(weight, best, grid, hessian)
    groups = weight.view(len(weight), len(hessian), -1)
    plain = replace(options, scale_search="minmax")
    for clip in _CLIPS:
        low = groups.amin(-1, keepdim=True) * clip
        high = groups.amax(-1, keepdim=True) * clip
        tried = grid.fit(groups.clamp(low, high).view_as(weight), plain)
        lost = _losses(weight, tried, grid, hessian)
        better = lost < least
        least = torch.where(better, lost, least)
        best = replace(
            best,
            scale=torch.where(better, tried.scale, best.scale),
            zero=torch.where(better, tried.zero, best.zero),
        )
    return best


def _losses(weight: Tensor, params: AffineParams, grid: Grid, hessian: Tensor) -> Tensor:
    """What each group's errors cost, [rows, groups]."""
    change = grid.decode(grid.encode(weight, params), params) - weight
    groups = change.view(len(weight), len(hessian), -1).transpose(0, 1)
    return ((groups @ hessian) * groups).sum(-1).T
