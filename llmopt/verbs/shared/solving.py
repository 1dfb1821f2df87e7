"""A step's method with the step's settings, for some rows of weights at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar, cast

import torch
from torch import Tensor

from llmopt.blockwalk import Inlet
from llmopt.errors import about
from llmopt.grids import ggml
from llmopt.grids.base import GridOptions, Quantized
from llmopt.grids.ggml import BlockTensor
from llmopt.linalg import InputMoments, InputStatistics
from llmopt.methods.quantize import blockwise
from llmopt.methods.quantize.base import Method, check_weight
from llmopt.methods.quantize.settings import Feedback, MethodSettings, Searched
from llmopt.model.layout import Layout
from llmopt.specs import FORMATS, METHODS, load
from llmopt.specs.ggml import GGML_TYPES
from llmopt.verbs.shared.settings import Solving

#: weights that are solved at once, whatever a linear has; no setting, since products of other
#: shapes add in other orders
CHUNK = 1 << 25

Q = TypeVar("Q", bound=Quantized)


def solved_rows(
    inlet: Inlet,
    names: Sequence[str],
    check: Callable[[Tensor], None],
    solve: Callable[[Tensor], Q],
) -> Iterator[tuple[str, Tensor, Q, slice[int, int, None]]]:
    """Linears that share an input, in chunks of rows; those of small linears are in one chunk.

    Yields a linear's name, some of its rows as they were, float32 [n, cols], and what `solve` made
    of a chunk, with where in it these rows are. `check` sees the rows of one linear before that,
    and its errors name it.
    """
    for some in _chunks(inlet, names):
        for name, weight in some:
            with about(name):
                check(weight)
        weights = [weight for _, weight in some]
        with about(", ".join(dict.fromkeys(name for name, _ in some))):
            solved = solve(torch.cat(weights) if len(weights) > 1 else weights[0])
        start = 0
        for name, weight in some:
            rows = slice(start, start + len(weight))
            start = rows.stop
            yield name, weight, solved, rows


def _chunks(inlet: Inlet, names: Sequence[str]) -> Iterator[list[tuple[str, Tensor]]]:
    together: list[tuple[str, Tensor]] = []
    size = 0
    for name in names:
        for weight in inlet.pieces(name, CHUNK):
            if together and size + weight.numel() > CHUNK:
                yield together
                together, size = [], 0
            together.append((name, weight))
            size += weight.numel()
    yield together


class Solver:
    """Codes for the linears of a step."""

    def __init__(self, solving: Solving) -> None:
        self._solving, self._settings = solving, solving.settings
        self._min_zero = FORMATS[solving.format].min_zero

    @property
    def wanted(self) -> InputMoments:
        """What has to be known of a linear's inputs; more is not used."""
        return InputMoments(hessian=METHODS[self._solving.method].hessian)

    def solve(
        self, weight: Tensor, statistics: InputStatistics | None, chosen: Layout
    ) -> Quantized:
        """Codes for weight [rows, cols] float32, whose inputs have these statistics."""
        settings = self._settings
        if chosen.grid in GGML_TYPES:
            if isinstance(settings, Feedback) and statistics is not None:
                return blockwise.solve(weight, statistics, chosen.grid, settings)
            importance = None if statistics is None else statistics.diagonal
            return self.encode(weight, importance, chosen.grid)
        assert isinstance(settings, MethodSettings)
        method = cast("Method[MethodSettings]", load(METHODS[self._solving.method].module))
        return method.solve(weight, statistics, self.options(chosen), settings)

    def encode(self, weight: Tensor, importance: Tensor | None, type_id: str) -> BlockTensor:
        """The nearest blocks of a ggml type; importance [cols] weighs squared errors."""
        check_weight(weight)
        data = ggml.encode(type_id, weight, importance, self._solving.search)
        return BlockTensor(grid=type_id, data=data)

    def options(self, chosen: Layout) -> GridOptions:
        """The grid that these settings ask for."""
        settings = self._settings
        assert isinstance(settings, MethodSettings)
        search = settings.scale_search if isinstance(settings, Searched) else "importance"
        assert search != "auto"  # a plan has decided
        return GridOptions(
            grid=chosen.grid,
            bits=chosen.bits,
            group_size=chosen.group_size,
            symmetric=chosen.symmetric,
            scale_search=search,
            signed_scales=settings.signed_scales,
            min_zero=self._min_zero,
        )
