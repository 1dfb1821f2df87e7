"""Round to nearest, with the scales that the grid's search finds."""

from __future__ import annotations

from torch import Tensor

from llmopt.errors import LlmoptError
from llmopt.grids.base import GridOptions, QuantizedTensor
from llmopt.linalg import InputStatistics
from llmopt.methods.quantize.base import check_weight, grid_of
from llmopt.methods.quantize.settings import MethodSettings


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
    params = grid.fit(weight, options, importance)
    return QuantizedTensor(grid=options.grid, codes=grid.encode(weight, params), params=params)
