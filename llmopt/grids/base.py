"""What every number format shares: its options, a quantized tensor, and the grid protocol."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal, Protocol

import torch
from torch import Tensor

from llmopt.grids.ggml.base import BlockTensor

ScaleSearch = Literal["minmax", "mse", "importance"]


@dataclass(frozen=True, kw_only=True)
class GridOptions:
    """How a recipe asks for a grid.

    `group_size` counts input channels that share a scale; -1 means a whole row. `min_zero` is the
    smallest zero point the target format can store (1 for GPTQ v1, which stores zero - 1).
    `signed_scales` lets a symmetric grid use a negative scale, so that the one extra negative
    code can serve whichever side has the extreme.
    """

    grid: str
    bits: int
    group_size: int = 128
    symmetric: bool = True
    scale_search: ScaleSearch = "importance"
    signed_scales: bool = True
    min_zero: int = 0


@dataclass(frozen=True, kw_only=True)
class AffineParams:
    """Parameters of value = float32(scale) * (code - zero), per row and group of columns.

    scale: [rows, groups] float32, every value exactly representable in `scale_dtype`.
    zero: [rows, groups] int32, in [0, 2**bits - 1].
    group_index: [cols] int32, the group of each column; None where it is column // group_size.
    """

    bits: int
    group_size: int
    symmetric: bool
    scale: Tensor
    zero: Tensor
    group_index: Tensor | None = None
    scale_dtype: str = "float16"


@dataclass(frozen=True, kw_only=True)
class QuantizedTensor:
    """A weight as codes uint8 [rows, cols] in the checkpoint's column order.

    `activations` names the grid that inputs are rounded to, token by token, in a product with it.
    `losses`: float64 [rows], where what chose the codes knows it d E[x x^T] d^T for the error d of
    each row: what it costs in outputs.
    """

    grid: str
    codes: Tensor
    params: AffineParams
    activations: str | None = None
    losses: Tensor | None = None


def rows_of(tensor: QuantizedTensor, rows: slice) -> QuantizedTensor:
    """Some output channels of a tensor, in memory of their own."""
    p, losses = tensor.params, tensor.losses
    params = replace(p, scale=p.scale[rows].clone(), zero=p.zero[rows].clone())
    return replace(
        tensor, codes=tensor.codes[rows].clone(), params=params,
        losses=None if losses is None else losses[rows],
    )  # fmt: skip


def joined(parts: Sequence[QuantizedTensor]) -> QuantizedTensor:
    """Output channels that were rounded alike, one after the other."""
    if len(parts) == 1:
        return parts[0]
    params = replace(
        parts[0].params,
        scale=torch.cat([part.params.scale for part in parts]),
        zero=torch.cat([part.params.zero for part in parts]),
    )
    return replace(
        parts[0], codes=torch.cat([part.codes for part in parts]), params=params,
        losses=of_all([part.losses for part in parts]),
    )  # fmt: skip


def of_all(losses: Sequence[Tensor | None]) -> Tensor | None:
    """Those of several parts, one after the other; None where one's are not known."""
    known = [each for each in losses if each is not None]
    return torch.cat(known) if len(known) == len(losses) else None


#: a weight in any number format
Quantized = QuantizedTensor | BlockTensor


class Grid(Protocol):
    """What a module in llmopt.grids provides. Pure tensor functions on any device.

    levels: float32 [n], ascending, what codes stand for before they are scaled; None where code c
    stands for c - zero. scale_dtype: that of stored scales.
    """

    @property
    def levels(self) -> Tensor | None: ...

    @property
    def scale_dtype(self) -> str: ...

    def fit(
        self, w: Tensor, options: GridOptions, importance: Tensor | None = None
    ) -> AffineParams:
        """Choose parameters for w [rows, cols] float32; importance [cols] weighs the error."""

    def encode(self, w: Tensor, params: AffineParams) -> Tensor:
        """Nearest codes, uint8 [rows, cols]."""

    def decode(self, codes: Tensor, params: AffineParams) -> Tensor:
        """The float32 values [rows, cols] that `codes` stand for."""

    def fit_block(
        self, w: Tensor, options: GridOptions, importance: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Scale float32 [rows] and zero int32 [rows] for one group of columns w [rows, n]."""
