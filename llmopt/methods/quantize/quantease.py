"""QuantEase (Behdin et al. 2023): coordinate descent on the layer's loss, from round to nearest."""

from dataclasses import replace

import torch
from torch import Tensor

from llmopt.grids.base import GridOptions, QuantizedTensor
from llmopt.linalg import InputStatistics
from llmopt.methods.quantize import rtn
from llmopt.methods.quantize.base import grid_of
from llmopt.methods.quantize.blocks import ColumnLattice, descend
from llmopt.methods.quantize.settings import QuantEaseSettings


def solve(weight: Tensor, statistics: InputStatistics | None, options: GridOptions,
          settings: QuantEaseSettings) -> QuantizedTensor:  # fmt: skip
    """Lower tr((W - Q) H (W - Q)^T) group by group, `settings.refine` times over."""
    nearest = rtn.solve(weight, statistics, options, settings)
    assert statistics is not None
    hessian, scale, zero = statistics.hessian, nearest.params.scale.T, nearest.params.zero.T.float()
    size, signed = len(hessian) // len(scale), options.symmetric and options.signed_scales
    zeros, grid = zero.repeat_interleave(size, 0), grid_of(options)
    signed &= grid.levels is None
    whole = ColumnLattice(scale, zeros, zeros, True, signed, grid.scale_dtype, grid.levels)
    codes, scale = whole.kept(nearest.codes.T.contiguous().float() - zeros), scale.clone()
    residual = weight.T - codes * scale.repeat_interleave(size, 0)
    for _ in range(settings.refine):
        for group, low in enumerate(-zero):
            block = slice(group * size, (group + 1) * size)
            cost = hessian[block, block].clone()
            cost.diagonal().clamp_(min=1e-12)  # an input that is always 0 costs nothing
            high = low[None] + 2**options.bits - 1
            open_to = replace(whole, scale=scale[[group]], low=low[None], high=high)
            codes[block], new = descend(hessian[block] @ residual, cost, codes[block], open_to)
            scale[group], residual[block] = new.scale[0], weight.T[block] - codes[block] * new.scale
    params = replace(nearest.params, scale=scale.T.contiguous())
    return replace(
        nearest, codes=(whole.keep(codes) + zeros).to(torch.uint8).T.contiguous(), params=params
    )
