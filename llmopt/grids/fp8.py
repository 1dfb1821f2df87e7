"""FP8 E4M3: value = scale * level, the levels being all finite values of float8_e4m3fn.

A code is the index of a level among the 253, ascending; the two zeros are one. Scales are float32:
the largest level is 448, and a float16 scale of small weights over it would lose digits.
"""

from __future__ import annotations

import torch

from llmopt.grids.levels import LevelGrid

__all__ = ["decode", "encode", "fit", "fit_block", "levels", "scale_dtype"]

_PATTERNS = torch.arange(256, dtype=torch.uint8).view(torch.float8_e4m3fn).float()
_GRID = LevelGrid(torch.unique(_PATTERNS[_PATTERNS.isfinite()]), "float32")

fit, fit_block, encode, decode = _GRID.fit, _GRID.fit_block, _GRID.encode, _GRID.decode
levels, scale_dtype = _GRID.levels, _GRID.scale_dtype
