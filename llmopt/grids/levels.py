"""Grids whose values are a table of levels: value = float32(scale) * level per row and group.

A code is the index of its level, and zero points are 0. Where a table is None, the levels are all
whole numbers from -zero to 2**bits - 1 - zero.
"""

from __future__ import annotations

import torch
from torch import Tensor

from llmopt.grids.affine import group_length, per_column, round_scale
from llmopt.grids.base import AffineParams, GridOptions

# The ranges tried around the largest level meeting the extreme, as fractions of it.
_RANGES = (1.0, 0.97, 0.94, 0.9, 0.86, 0.82, 0.78)
_CHUNK = 1 << 18


def nearest(x: Tensor, levels: Tensor) -> Tensor:
    """The level nearest to each x; the lower one in the middle."""
    return levels[index(x, levels)]


def index(x: Tensor, levels: Tensor) -> Tensor:
    """The int64 index of the level nearest to each x; levels [n] float32, ascending."""
    return torch.bucketize(x.contiguous(), (levels[1:] + levels[:-1]) / 2)


def spacing(levels: Tensor) -> Tensor:
    """[n] how far apart levels are around each of them."""
    gaps = levels.diff()
    return (torch.cat([gaps[:1], gaps]) + torch.cat([gaps, gaps[-1:]])) / 2


class LevelGrid:
    """llmopt.grids.base.Grid over a table of levels [n], n <= 256."""

    def __init__(self, levels: Tensor, scale_dtype: str) -> None:
        self.levels, self.scale_dtype = levels, scale_dtype

    def fit(
        self, w: Tensor, options: GridOptions, importance: Tensor | None = None
    ) -> AffineParams:
        """Scales for w [rows, cols] float32 by groups of consecutive columns."""
        rows, cols = w.shape
        size = group_length(cols, options.group_size)
        blocks = w.reshape(rows, -1, size)
        weights = None if importance is None else importance.view(-1, size)
        step = max(1, _CHUNK // cols)
        parts = [self._search(part, options, weights) for part in torch.split(blocks, step)]
        scale = torch.cat(parts)
        return AffineParams(
            bits=options.bits,
            group_size=options.group_size,
            symmetric=True,
            scale=scale,
            zero=torch.zeros_like(scale, dtype=torch.int32),
            scale_dtype=self.scale_dtype,
        )

    def fit_block(
        self, w: Tensor, options: GridOptions, importance: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Scale float32 [rows] and zero int32 [rows] for one group of columns w [rows, n]."""
        step = max(1, _CHUNK // w.shape[1])
        scale = torch.cat([self._search(p, options, importance) for p in torch.split(w, step)])
        return scale, torch.zeros_like(scale, dtype=torch.int32)

    def encode(self, w: Tensor, params: AffineParams) -> Tensor:
        """Nearest codes, uint8 [rows, cols]."""
        scale, _, shape = per_column(params, w.shape[1])
        return index(w.reshape(shape) / scale, self._table(w)).to(torch.uint8).view(w.shape)

    def decode(self, codes: Tensor, params: AffineParams) -> Tensor:
        """The float32 values [rows, cols] that `codes` stand for: scale * level."""
        scale, _, shape = per_column(params, codes.shape[1])
        values = self._table(codes)[codes.reshape(shape).to(torch.int64)]
        return values.mul_(scale).view(codes.shape)

    def _search(self, x: Tensor, options: GridOptions, weights: Tensor | None) -> Tensor:
        """The scale of each group along the last dimension of x, float32 of shape x.shape[:-1].

        Of several ranges, each with the scale refitted to its codes, that with the least error.
        """
        levels = self._table(x)
        largest = float(levels.abs().max())
        full = x.abs().amax(-1) / largest
        scale = round_scale(full, self.scale_dtype)
        if options.scale_search == "minmax":
            return scale
        weighed = (
            torch.ones_like(x) if options.scale_search == "mse" or weights is None else weights
        )
        best = torch.full_like(scale, torch.inf)
        for fraction in _RANGES:
            tried = round_scale(full * fraction, self.scale_dtype)
            level = nearest(x / tried.unsqueeze(-1), levels)
            norm = (weighed * level * level).sum(-1)
            fitted = torch.where(norm > 0, (weighed * x * level).sum(-1) / norm, tried)
            fitted = round_scale(torch.where(fitted > 0, fitted, tried), self.scale_dtype)
            error = (weighed * (x - fitted.unsqueeze(-1) * level).square()).sum(-1)
            scale, best = torch.where(error < best, fitted, scale), torch.minimum(error, best)
        return scale

    def _table(self, like: Tensor) -> Tensor:
        return self.levels.to(like.device)
