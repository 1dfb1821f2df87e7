"""Round to nearest, with the scales that the grid's search finds."""

from __future__ import annotations

import torch
from torch import Tensor

from llmopt.errors import LlmoptError
from llmopt.grids.base import GridOptions, QuantizedTensor, joined
from llmopt.linalg import InputStatistics
from llmopt.methods.quantize.base import check_weight, grid_of
from llmopt.methods.quantize.settings import MethodSettings

#: weights that are worked on at once; rows do not depend on each other
_CHUNK = 1 << 22


def solve(
    weight: Tensor,
    statistics: InputStatistics | None,
    options: GridOptions,
    settings: MethodSettings,  # noqa: ARG001  # one protocol for all methods
) -> QuantizedTensor:
    """The nearest codes for weight [rows, cols] float32.

    Where options.scale_search is "importance", E[x^2] of each input channel weighs the errors
    that the search minimises.
    """
    check_weight(weight)
    importance = None
    if options.scale_search == "importance":
        if statistics is None or statistics.tokens == 0:
            raise LlmoptError(
                "an importance-weighted scale search needs calibration statistics",
                hint="give calibration text, or choose the scale search mse",
            )
        importance = statistics.diagonal
    grid = grid_of(options)
    parts = []
    for rows in torch.split(weight, max(1, _CHUNK // weight.shape[1])):
        params = grid.fit(rows, options, importance)
        codes = grid.encode(rows, params)
        parts.append(QuantizedTensor(grid=options.grid, codes=codes, params=params))
    return joined(parts)
