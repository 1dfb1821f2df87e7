"""A step's method with the step's settings, for one weight at a time."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

from torch import Tensor

from llmopt.grids import ggml
from llmopt.grids.base import GridOptions, Quantized
from llmopt.grids.ggml import BlockTensor
from llmopt.linalg import InputStatistics
from llmopt.methods.quantize import blockwise
from llmopt.methods.quantize.base import Method, SolverSettings, check_weight
from llmopt.model.layout import Layout
from llmopt.specs import FORMATS, METHODS, load
from llmopt.specs.ggml import GGML_TYPES


class Solver:
    """`settings` are a quantize step's effective ones, or those of a conversion to GGUF."""

    def __init__(self, settings: dict[str, Any]) -> None:
        self._settings = settings
        self._min_zero = FORMATS[settings["format"]].min_zero
        self._method: Method = load(METHODS[settings["method"]].module)
        self._solver = SolverSettings(
            **{f.name: settings[f.name] for f in fields(SolverSettings) if f.name in settings}
        )

    def solve(
        self, weight: Tensor, statistics: InputStatistics | None, chosen: Layout
    ) -> Quantized:
        """Codes for weight [rows, cols] float32, whose inputs have these statistics."""
        if chosen.grid in GGML_TYPES:
            if self._settings["method"] == "gptq" and statistics is not None:
                return blockwise.solve(weight, statistics, chosen.grid, self._solver)
            importance = None if statistics is None else statistics.diagonal
            return self.encode(weight, importance, chosen.grid)
        return self._method.solve(weight, statistics, self.options(chosen), self._solver)

    def encode(self, weight: Tensor, importance: Tensor | None, type_id: str) -> BlockTensor:
        """The nearest blocks of a ggml type; importance [cols] weighs squared errors."""
        check_weight(weight)
        search = self._settings["search"]
        return BlockTensor(grid=type_id, data=ggml.encode(type_id, weight, importance, search))

    def options(self, chosen: Layout) -> GridOptions:
        """The grid that these settings ask for."""
        return GridOptions(
            grid=chosen.grid,
            bits=chosen.bits,
            group_size=chosen.group_size,
            symmetric=chosen.symmetric,
            scale_search=self._settings.get("scale_search", "importance"),
            signed_scales=self._settings["signed_scales"],
            min_zero=self._min_zero,
        )
