"""What every quantization method shares: what it is given, and what it checks."""

from __future__ import annotations

from typing import Protocol, TypeVar, cast

import torch
from torch import Tensor

from llmopt.errors import RequestError
from llmopt.grids.base import Grid, GridOptions, QuantizedTensor
from llmopt.linalg import InputStatistics, all_finite
from llmopt.methods.quantize.settings import MethodSettings
from llmopt.specs.base import load, lookup
from llmopt.specs.grids import GRIDS

#: the magnitudes of scales in float16: the largest, and from where on there are five bits to them
_LARGEST_HALF, _FEWEST_BITS = 65504.0, 2.0**-20
#: of a weight's squares, what may lie in groups whose scales are smaller
_LOST_SHARE = 0.01
_OTHERS = "fp8 (compressed-tensors) and nf4 (bitsandbytes-nf4) have scales in float32"

S = TypeVar("S", bound=MethodSettings, contravariant=True)


class Method(Protocol[S]):
    """What a module in llmopt.methods.quantize provides."""

    def solve(
        self,
        weight: Tensor,
        statistics: InputStatistics | None,
        options: GridOptions,
        settings: S,
    ) -> QuantizedTensor:
        """Choose codes and parameters for weight [rows, cols] float32.

        The rows may be those of several linears that share the input that `statistics` describes.
        """


def grid_of(options: GridOptions) -> Grid:
    """The module that implements the grid, or RequestError where there is none of that name."""
    return cast("Grid", load(lookup(GRIDS, "grid", options.grid).module))


def check_weight(weight: Tensor) -> None:
    """Refuse a weight that has no nearest codes."""
    if not all_finite(weight):
        raise RequestError("the weight holds NaN or infinite values")


def check_scales(weight: Tensor, tensor: QuantizedTensor) -> None:
    """Refuse what scales in float16 could not follow; see `ScaleCheck`."""
    check = ScaleCheck()
    check.add(weight, tensor)
    check.settle()


class ScaleCheck:
    """Refuses what scales in float16 could not follow: they were clipped, or hardly told apart.

    A few groups of tiny weights in a larger one are lost without harm, as in any rounding.
    """

    def __init__(self) -> None:
        self._tiny = self._whole = 0.0

    def add(self, weight: Tensor, tensor: QuantizedTensor) -> None:
        """Look at some rows [n, cols] of a weight, and what was made of them."""
        params = tensor.params
        if params.scale_dtype != "float16":
            return
        size = params.scale.abs()
        if float(size.max()) >= _LARGEST_HALF:  # what larger ones are clipped to
            raise RequestError("the weights are too large for scales in float16", hint=_OTHERS)
        self._whole += float(torch.linalg.vector_norm(weight, dtype=torch.float64)) ** 2
        tiny = size < _FEWEST_BITS
        if bool(tiny.any()):
            self._tiny += float(_energies(weight, tensor)[tiny].sum())

    def settle(self) -> None:
        """RequestError where too much of all that was looked at is lost."""
        if self._tiny > _LOST_SHARE * self._whole:
            raise RequestError("the weights are too small for scales in float16", hint=_OTHERS)


def _energies(weight: Tensor, tensor: QuantizedTensor) -> Tensor:
    """Sums of squares of each row and group, float64, in the scales' shape."""
    square, scale = weight.double().square(), tensor.params.scale
    if tensor.params.group_index is None:
        return square.view(*scale.shape, -1).sum(-1)
    index = tensor.params.group_index.to(weight.device, torch.int64)
    return torch.zeros_like(scale, dtype=torch.float64).index_add_(1, index, square)
