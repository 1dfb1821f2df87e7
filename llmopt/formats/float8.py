"""Between float8_e4m3fn tensors and the codes of the fp8 grid, which number its values."""

from __future__ import annotations

import torch
from torch import Tensor

from llmopt.errors import RequestError
from llmopt.grids.base import Grid
from llmopt.specs import GRIDS, load


def level_indices(weight: Tensor) -> Tensor:
    """The uint8 codes of a float8_e4m3fn tensor; RequestError where it holds a NaN.

    A negative zero becomes the zero that it equals.
    """
    levels = _levels().to(weight.device)
    values = torch.arange(256, dtype=torch.uint8, device=weight.device)
    values = values.view(torch.float8_e4m3fn).float()
    table = torch.searchsorted(levels, values.nan_to_num()).to(torch.uint8)
    patterns = weight.view(torch.uint8)
    if bool(values.isnan()[patterns.to(torch.int64)].any()):
        raise RequestError("a weight is not a number")
    return table[patterns.to(torch.int64)]


def float8_of(codes: Tensor) -> Tensor:
    """The float8_e4m3fn tensor that codes of the fp8 grid stand for, before it is scaled."""
    levels = _levels().to(codes.device).to(torch.float8_e4m3fn).view(torch.uint8)
    return levels[codes.to(torch.int64)].view(torch.float8_e4m3fn)


def _levels() -> Tensor:
    grid: Grid = load(GRIDS["fp8"].module)
    assert grid.levels is not None
    return grid.levels
