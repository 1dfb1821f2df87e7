"""GPTQ: round column by column, let later columns make up for each error; then descend further.

With R upper triangular and H = R R^T (H damped), the loss of row w is

    (w - q) H (w - q)^T = sum over columns k of R_kk^2 (t_k - q_k)^2,
    t_k = w_k + sum over j < k of (w_j - q_j) R_jk / R_kk,

so rounding t_k in turn is GPTQ (its eager updates through chol(H^-1) give the same t_k), and R is
all it takes. After this pass every column has neighbours on both sides fixed, and the descent's
target for column k is w_k + sum over j != k of (w_j - q_j) H_jk / H_kk. Both need, for a block
of columns, one matrix product over all columns before (or around) it, and then only the block.
The tensors here are transposed, a column of the weight to a contiguous row.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from llmopt.errors import LlmoptError
from llmopt.grids.affine import group_length
from llmopt.grids.base import AffineParams, Grid, GridOptions, QuantizedTensor, of_all
from llmopt.linalg import Factor, InputStatistics
from llmopt.methods.quantize import sweeps
from llmopt.methods.quantize.base import check_weight, grid_of
from llmopt.methods.quantize.blocks import ColumnLattice, descend, feedback, feedback_with_trials
from llmopt.methods.quantize.settings import ActOrder, GptqSettings


def solve(
    weight: Tensor,
    statistics: InputStatistics | None,
    options: GridOptions,
    settings: GptqSettings,
) -> QuantizedTensor:
    """Choose codes and parameters for weight [rows, cols] float32 by its inputs' Hessian."""
    check_weight(weight)
    if statistics is None or statistics.tokens == 0:
        raise LlmoptError("gptq needs calibration statistics", hint="give calibration text")
    cols = weight.shape[1]
    size = group_length(cols, options.group_size)
    order = column_order(statistics.diagonal, size, settings.act_order)
    factor = statistics.factor(settings.damping, order=order)
    solver = _Solver(factor, order, size, statistics.diagonal, options, settings)
    parts = sweeps.by_rows(weight, solver.solve)
    return QuantizedTensor(
        grid=options.grid,
        codes=torch.cat([part.codes for part in parts]),
        params=AffineParams(
            bits=options.bits,
            group_size=options.group_size,
            symmetric=options.symmetric,
            scale=torch.cat([part.scale for part in parts]),
            zero=torch.cat([part.zero for part in parts]),
            group_index=solver.stored_index(),
            scale_dtype=grid_of(options).scale_dtype,
        ),
        losses=of_all([part.losses for part in parts]),
    )


def column_order(diagonal: Tensor, size: int, act_order: ActOrder) -> Tensor:
    """The order in which columns are rounded, int64 [cols]: the most active first.

    "group" sorts columns inside their groups, and groups by their most active column, so that the
    groups stay those of consecutive stored columns.
    """
    if act_order == "none":
        return torch.arange(diagonal.shape[0], device=diagonal.device)
    if act_order == "full":
        return torch.argsort(diagonal, descending=True, stable=True)
    groups = diagonal.view(-1, size)
    inside = torch.argsort(groups, dim=1, descending=True, stable=True)
    first = torch.arange(0, diagonal.shape[0], size, device=diagonal.device)
    between = torch.argsort(groups.amax(1), descending=True, stable=True)
    return (inside + first.unsqueeze(1))[between].reshape(-1)


@dataclass
class _Rows:
    """Some rows of the weight under way. Columns stand in rounding order, groups as stored.

    weight, residual (weight minus the values so far), codes (from the zero point; see
    ColumnLattice.keep): [cols, rows]. scale, zero: [groups, rows]. All float32 but codes, int16.
    """

    weight: Tensor
    residual: Tensor
    codes: Tensor
    scale: Tensor
    zero: Tensor

    @classmethod
    def start(cls, weight: Tensor, order: Tensor, groups: int) -> _Rows:
        columns = weight.T.contiguous().index_select(0, order)
        table = torch.zeros(groups, weight.shape[0], device=weight.device)
        return cls(
            weight=columns,
            residual=torch.zeros_like(columns),
            codes=torch.zeros_like(columns, dtype=torch.int16),
            scale=table,
            zero=table.clone(),
        )

    def settle(self, block: slice[int, int, None], codes: Tensor, lattice: ColumnLattice) -> None:
        """Take over a block's codes."""
        self.residual[block] = torch.addcmul(self.weight[block], codes, lattice.scale, value=-1)
        self.codes[block] = lattice.keep(codes)


@dataclass(frozen=True)
class _Result:
    """codes uint8 [rows, cols] in stored order; scale float32 and zero int32 [rows, groups].

    losses: as `QuantizedTensor`.
    """

    codes: Tensor
    scale: Tensor
    zero: Tensor
    losses: Tensor | None


class _Solver:
    """What all rows of a weight share."""

    def __init__(
        self,
        factor: Factor,
        order: Tensor,
        size: int,
        diagonal: Tensor,
        options: GridOptions,
        settings: GptqSettings,
    ) -> None:
        self._factor, self._order, self._size, self._stored_diagonal = factor, order, size, diagonal
        self._options, self._settings = options, settings
        self._grid: Grid = grid_of(options)
        levels = self._grid.levels
        self._levels = None if levels is None else levels.to(order.device)
        self._importance = factor.diagonal.square()
        self._regrouped = settings.regroups
        position = torch.arange(order.shape[0], device=order.device)
        self._group = (position if self._regrouped else order) // size

    def stored_index(self) -> Tensor | None:
        """The group of each stored column, int32 [cols], where it is not column // group size."""
        if not self._regrouped:
            return None
        index = torch.empty_like(self._group)
        index[self._order] = self._group
        return index.to(torch.int32)

    def solve(self, weight: Tensor) -> _Result:
        """Codes and parameters for some rows of the weight."""
        rows = _Rows.start(weight, self._order, weight.shape[1] // self._size)
        if self._settings.static_groups:
            params = self._grid.fit(weight, self._options, self._stored_diagonal)
            rows.scale, rows.zero = params.scale.T.clone(), params.zero.T.to(torch.float32)
        sweeps.feed_back(self._factor, rows.residual, self._size, partial(self._round, rows))
        losses = sweeps.descend(
            self._factor, rows.residual, self._size, partial(self._descend, rows),
            self._settings.refine,
        )  # fmt: skip
        codes = torch.empty(weight.T.shape, dtype=torch.uint8, device=weight.device)
        codes[self._order] = rows.codes.add_(rows.zero[self._group].to(torch.int16)).to(torch.uint8)
        return _Result(
            codes=codes.T.contiguous(),
            scale=rows.scale.T.contiguous(),
            zero=rows.zero.T.to(torch.int32).contiguous(),
            losses=losses,
        )

    def _round(self, rows: _Rows, block: slice[int, int, None], pending: Tensor) -> None:
        """Round a group; pending [n, rows] is what errors before it ask of it, times R."""
        upper = self._factor.upper.within(block)
        target = sweeps.wanted(upper, pending).add_(rows.weight[block])
        if not self._settings.static_groups:
            scale, zero = self._grid.fit_block(target.T, self._options, self._importance[block])
            rows.scale[self._group[block.start]] = scale
            rows.zero[self._group[block.start]] = zero.to(torch.float32)
        lattice = self._lattice(rows, block)
        if self._settings.refine == 0:
            rows.settle(block, feedback(target, upper, lattice), lattice)
            return
        codes, lattice = feedback_with_trials(target, upper, lattice)
        cost = upper @ upper.T
        gradient = cost @ target.addcmul_(codes, lattice.scale, value=-1)
        self._improve(rows, block, gradient, cost, codes, lattice)

    def _descend(self, rows: _Rows, block: slice[int, int, None], pending: Tensor) -> None:
        """Improve a group given all others; pending [n, rows] is H times the residual."""
        lattice = self._lattice(rows, block)
        codes, cost = lattice.kept(rows.codes[block]), self._factor.damped.within(block)
        self._improve(rows, block, pending, cost, codes, lattice)

    def _improve(
        self,
        rows: _Rows,
        block: slice[int, int, None],
        gradient: Tensor,
        cost: Tensor,
        codes: Tensor,
        old: ColumnLattice,
    ) -> None:
        codes, lattice = descend(gradient, cost, codes, old)
        if lattice.free:
            rows.scale[self._group[block.start]] = lattice.scale[0]
        rows.settle(block, codes, lattice)

    def _lattice(self, rows: _Rows, block: slice[int, int, None]) -> ColumnLattice:
        """The values open to a block's columns, by the scales and zeros of now."""
        groups = self._group[block]
        mixed = self._settings.static_groups and self._settings.act_order == "full"
        table = groups if mixed else groups[:1]
        zero = rows.zero[table]
        return ColumnLattice(
            scale=rows.scale[table],
            low=-zero,
            high=2**self._options.bits - 1 - zero,
            free=not self._settings.static_groups,
            signed=self._levels is None and self._options.symmetric and self._options.signed_scales,
            scale_dtype=self._grid.scale_dtype,
            levels=self._levels,
        )
