"""NormalFloat4 of QLoRA (Dettmers et al. 2023): quantiles of a normal distribution, absmax scales.

The levels are the 16 float32 numbers that bitsandbytes has, and a scale is the largest magnitude
of its group, so that round to nearest with the scale search minmax gives bitsandbytes' own codes
and scales. (A group of zeros alone has the scale 1 here and 0 there; both decode to zeros.)
"""

from __future__ import annotations

import torch
from torch import Tensor

from llmopt.grids.affine import per_column
from llmopt.grids.base import AffineParams
from llmopt.grids.levels import LevelGrid, index

__all__ = ["decode", "encode", "fit", "fit_block", "levels", "scale_dtype"]

# fmt: off
levels = torch.tensor([
    -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453,
    -0.28444138169288635, -0.18477343022823334, -0.09105003625154495, 0.0,
    0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224,
    0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0,
])
# fmt: on
scale_dtype = "float32"


class _NormalFloat(LevelGrid):
    """Rounds w * (1 / scale) as bitsandbytes does: w / scale may lie beyond a threshold."""

    def encode(self, w: Tensor, params: AffineParams) -> Tensor:
        """Nearest codes, uint8 [rows, cols]."""
        scale, _, shape = per_column(params, w.shape[1])
        nearest = index(w.reshape(shape) * scale.reciprocal(), self._table(w))
        return nearest.to(torch.uint8).view(w.shape)


_grid = _NormalFloat(levels, scale_dtype)
fit, fit_block, encode, decode = _grid.fit, _grid.fit_block, _grid.encode, _grid.decode
