"""AWQ (Lin et al. 2023): scale input channels that carry large activations before rounding.

Weights W scaled by s and inputs by 1/s give the same product, and another rounding error. With
H = E[x x^T] of the inputs, what a scale costs is tr(D H D^T), D = Q(W s) / s - W: no forward pass
is needed to compare scales.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from llmopt.grids.base import GridOptions
from llmopt.linalg import InputStatistics
from llmopt.methods.quantize.base import grid_of

# Exponents of the activations' size; AutoAWQ tries the same twenty.
_STEPS = 20
_TINY = 1e-4
# Weights that are scaled and rounded at once.
_CHUNK = 1 << 22


@dataclass(frozen=True)
class Reader:
    """Linears that share an input: weight float32 [rows, cols], all their rows together."""

    weight: Tensor
    statistics: InputStatistics
    options: GridOptions


def search_scale(readers: Sequence[Reader]) -> Tensor:
    """The scale float32 [cols] of the channels that all readers have as inputs; 1 where none helps.

    Readers may see different tokens, as experts do: each counts by how many it saw.
    """
    ones = torch.ones_like(readers[0].statistics.mean_abs)
    best, least = ones, _loss(readers, ones)
    for scale in _candidates(readers):
        loss = _loss(readers, scale)
        if loss < least:
            best, least = scale, loss
    return best


def _candidates(readers: Sequence[Reader]) -> Iterator[Tensor]:
    """x^r / w^(1 - r) and x^r, for r from 0 to 1; x and w as AutoAWQ has them."""
    tokens = sum(reader.statistics.tokens for reader in readers)
    x = sum(reader.statistics.mean_abs * (reader.statistics.tokens / tokens) for reader in readers)
    assert isinstance(x, Tensor)
    w = _relative_size(readers)
    for step in range(_STEPS):
        ratio = step / _STEPS
        power = x.pow(ratio)
        for scale in (power / (w.pow(1 - ratio) + _TINY), power):
            scale = scale.clamp(min=_TINY)
            yield scale / (scale.max() * scale.min()).sqrt()


def _relative_size(readers: Sequence[Reader]) -> Tensor:
    """The mean over rows of each weight over the largest of its group, [cols]."""
    total, rows = torch.zeros_like(readers[0].statistics.mean_abs), 0
    for reader in readers:
        count, cols = reader.weight.shape
        size = cols if reader.options.group_size == -1 else reader.options.group_size
        groups = reader.weight.abs().view(count, -1, size)
        relative = groups / groups.amax(-1, keepdim=True).clamp(min=1e-12)
        total += relative.view(count, cols).sum(0)
        rows += count
    return total / rows


def _loss(readers: Sequence[Reader], scale: Tensor) -> float:
    total = 0.0
    for reader in readers:
        options = replace(reader.options, scale_search="minmax")
        grid = grid_of(options)
        for rows in torch.split(reader.weight, max(1, _CHUNK // reader.weight.shape[1])):
            scaled = rows * scale
            params = grid.fit(scaled, options)
            change = grid.decode(grid.encode(scaled, params), params).div_(scale).sub_(rows)
            total += float(reader.statistics.losses(change).sum()) * reader.statistics.tokens
    return total
