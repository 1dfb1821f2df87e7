"""How far stored codes are from the weights that they stand for, in steps of their own grid.

A method that rounds, and even one that moves codes to make up for the rounding of others, stays
about the weights: the error has no mean, and an r.m.s. of a fraction of a step, whatever the model
and the number of bits. Scales, zero points or codes that belong elsewhere do not. Where little
flows through a linear this shows damage that hardly shows in what the model says.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from importlib import import_module

import torch
from torch import Tensor

from llmopt.grids.base import Grid, QuantizedTensor
from llmopt.specs import GRIDS, lookup


@dataclass(frozen=True)
class CodeError:
    """Of one linear, in steps: `bias` is the mean's size, `spread` the root mean square."""

    bias: float
    spread: float


def code_error(weight: Tensor, tensor: QuantizedTensor) -> CodeError:
    """The error of codes against `weight` [out, in], the linear's weight in the base model."""
    params, cols = tensor.params, tensor.codes.shape[1]
    index = params.group_index
    if index is None:
        index = torch.arange(cols) // (cols // params.scale.shape[1])
    grid: Grid = import_module(lookup(GRIDS, "grid", tensor.grid).module)
    step = params.scale[:, index.to(torch.int64)]
    error = (weight.float() - grid.decode(tensor.codes, params)) / step
    mean = error.mean(dtype=torch.float64)
    square = error.square_().mean(dtype=torch.float64)
    return CodeError(bias=abs(float(mean)), spread=float(square.sqrt()))


def worst(errors: Mapping[str, CodeError]) -> dict[str, float]:
    """The metrics `bias` and `spread` of a model: the largest of any linear's."""
    return {
        "bias": max(error.bias for error in errors.values()),
        "spread": max(error.spread for error in errors.values()),
    }
