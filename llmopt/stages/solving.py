"""A step's method with the step's settings, for one weight at a time."""

from __future__ import annotations

import importlib
from dataclasses import fields
from typing import Any

from torch import Tensor

from llmopt.fates import LinearSettings
from llmopt.grids.base import GridOptions, QuantizedTensor
from llmopt.methods.quantize.base import InletStatistics, Method, SolverSettings
from llmopt.specs import FORMATS, METHODS


class Solver:
    """`settings` are a quantize step's effective ones."""

    def __init__(self, settings: dict[str, Any]) -> None:
        self._settings = settings
        self._min_zero = FORMATS[settings["format"]].min_zero
        self._method: Method = importlib.import_module(METHODS[settings["method"]].module)
        self._solver = SolverSettings(
            **{f.name: settings[f.name] for f in fields(SolverSettings) if f.name in settings}
        )

    def solve(
        self, weight: Tensor, statistics: InletStatistics | None, chosen: LinearSettings
    ) -> QuantizedTensor:
        """Codes for weight [rows, cols] float32, whose inputs have these statistics."""
        return self._method.solve(weight, statistics, self.options(chosen), self._solver)

    def options(self, chosen: LinearSettings) -> GridOptions:
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
