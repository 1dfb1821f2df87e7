"""Error feedback on ggml's formats: blocks in stored order, scales fitted to what errors ask for.

What gptq.py says of R, targets and descent holds here, too; only the values that columns may take
are other ones. A block has one set of stored fields (scales and minimums, themselves quantized),
so they are fitted to the block's targets, codes follow column by column with feedback, and then
fields and codes are improved in turn, each as far as it lowers the loss. Formats whose codes stand
for vectors are rounded vector by vector. Tensors are transposed: a column of the weight to a
contiguous row.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor

from llmopt.errors import LlmoptError
from llmopt.grids.base import of_all
from llmopt.grids.ggml import BlockTensor, block_grid, check_range, place_of
from llmopt.grids.ggml.base import Fields, ScalarGrid, VectorGrid
from llmopt.linalg import Factor, InputStatistics
from llmopt.methods.quantize import sweeps
from llmopt.methods.quantize.blocks import ColumnLattice, descend, feedback
from llmopt.methods.quantize.settings import Feedback
from llmopt.specs.ggml import GGML_TYPES


def solve(
    weight: Tensor, statistics: InputStatistics, type_id: str, settings: Feedback
) -> BlockTensor:
    """Choose fields and codes for weight [rows, cols] float32 by its inputs' Hessian.

    RequestError where the weight is not finite or too large for the type.
    """
    check_range(type_id, weight)
    if statistics.tokens == 0:
        raise LlmoptError("error feedback needs calibration statistics")
    place = place_of(type_id, weight)
    factor = statistics.to(place).factor(settings.damping)
    solver = _Solver(factor, type_id, settings.refine)
    parts = sweeps.by_rows(weight.to(place), solver.solve)
    data = torch.cat([part for part, _ in parts]).to(weight.device)
    losses = of_all([lost for _, lost in parts])
    return BlockTensor(
        grid=type_id, data=data, losses=None if losses is None else losses.to(weight.device)
    )


@dataclass
class _Rows:
    """Some rows of the weight under way: [cols, rows] float32, codes int16 (int64 for vectors)."""

    weight: Tensor
    residual: Tensor
    codes: Tensor
    fields: dict[int, Fields] = field(default_factory=dict)


@dataclass(frozen=True)
class _Settled:
    """A block's fields, codes [n, rows], and the values [n, rows] that they stand for."""

    fields: Fields
    codes: Tensor
    values: Tensor


class _Solver:
    def __init__(self, factor: Factor, type_id: str, refine: int) -> None:
        self._factor, self._refine, self._width = factor, refine, GGML_TYPES[type_id].block
        grid = block_grid(type_id)
        self._rounding: _Scalars | _Vectors = (
            _Vectors(grid) if hasattr(grid, "vector") else _Scalars(grid)  # type: ignore[arg-type]
        )

    def solve(self, weight: Tensor) -> tuple[Tensor, Tensor | None]:
        """uint8 [rows, bytes] for some rows of the weight, and losses as `QuantizedTensor`'s."""
        columns = weight.T.contiguous()
        codes = torch.zeros(
            columns.shape[0] // self._rounding.vector, columns.shape[1],
            dtype=self._rounding.dtype, device=weight.device,
        )  # fmt: skip
        rows = _Rows(columns, torch.zeros_like(columns), codes)
        sweeps.feed_back(self._factor, rows.residual, self._width, partial(self._round, rows))
        descent = partial(self._descend, rows)
        losses = sweeps.descend(self._factor, rows.residual, self._width, descent, self._refine)
        blocks = [
            self._rounding.pack(rows.fields[start], self._codes(rows, start).T.contiguous())
            for start in range(0, columns.shape[0], self._width)
        ]
        return torch.cat(blocks, dim=1), losses

    def _codes(self, rows: _Rows, start: int) -> Tensor:
        vector = self._rounding.vector
        return rows.codes[start // vector : (start + self._width) // vector]

    def _round(self, rows: _Rows, block: slice[int, int, None], pending: Tensor) -> None:
        """Round a block; pending [n, rows] is what errors before it ask of it, times R."""
        upper = self._factor.upper.within(block)
        target = sweeps.wanted(upper, pending).add_(rows.weight[block])
        self._settle(rows, block, self._rounding.round(target, upper, self._refine))

    def _descend(self, rows: _Rows, block: slice[int, int, None], pending: Tensor) -> None:
        """Improve a block given all others; pending [n, rows] is H times the residual."""
        cost = self._factor.damped.within(block)
        values = rows.weight[block] - rows.residual[block]
        codes = self._codes(rows, block.start)
        present = _Settled(rows.fields[block.start], codes.clone(), values)
        self._settle(rows, block, self._rounding.improve(present, pending, cost))

    def _settle(self, rows: _Rows, block: slice[int, int, None], settled: _Settled) -> None:
        """Take over what a block settled on."""
        rows.fields[block.start] = settled.fields
        self._codes(rows, block.start).copy_(settled.codes)
        rows.residual[block] = rows.weight[block] - settled.values


class _Scalars:
    """Formats in which each weight has a code."""

    vector = 1
    dtype = torch.int16

    def __init__(self, grid: ScalarGrid) -> None:
        self.grid = grid

    def round(self, target: Tensor, upper: Tensor, refine: int) -> _Settled:
        """Fields and codes for target [n, rows], whose errors cost e^T U U^T e, U = upper."""
        importance = upper.diagonal().square()
        fields = self.grid.fit(target.T.contiguous(), importance)
        lattice, offset = self._lattice(fields)
        chosen = feedback(target - offset, upper, lattice)
        settled = _Settled(fields, lattice.keep(chosen), chosen.mul_(lattice.scale).add_(offset))
        if refine == 0:
            return settled
        cost = upper @ upper.T
        return self.improve(settled, cost @ (target - settled.values), cost)

    def pack(self, fields: Fields, codes: Tensor) -> Tensor:
        """uint8 [n, bytes] from codes [n, width]."""
        return self.grid.pack(fields, codes.to(torch.uint8))

    def improve(self, present: _Settled, gradient: Tensor, cost: Tensor) -> _Settled:
        """Other fields for the same codes, then other codes, where that lowers e^T A e.

        gradient: [n, rows], A e, and A = cost.
        """
        diagonal = cost.diagonal()
        wanted = gradient / diagonal.unsqueeze(1) + present.values
        fields = self.grid.refit(wanted.T.contiguous(), present.codes.T.to(torch.int64), diagonal)
        lattice, offset = self._lattice(fields)
        values = lattice.kept(present.codes).mul_(lattice.scale).add_(offset)
        settled, gradient = _accepted(present, fields, values, gradient, cost)
        lattice, offset = self._lattice(settled.fields)
        chosen, _ = descend(gradient, cost, lattice.kept(present.codes), lattice)
        return _Settled(
            settled.fields, lattice.keep(chosen), chosen.mul_(lattice.scale).add_(offset)
        )

    def _lattice(self, fields: Fields) -> tuple[ColumnLattice, Tensor]:
        """The lattice without its offset, [n, rows], and the offset."""
        found = self.grid.lattice(fields)
        scale = found.scale.T.contiguous()
        low = torch.zeros_like(scale[:1])
        return (
            ColumnLattice(
                scale=scale,
                low=low,
                high=low + found.top,
                free=False,
                signed=True,
                levels=found.levels,
            ),
            found.offset.T.contiguous(),
        )


class _Vectors:
    """Formats in which some consecutive weights share a code."""

    dtype = torch.int64

    def __init__(self, grid: VectorGrid) -> None:
        self.grid, self.vector = grid, grid.vector

    def round(self, target: Tensor, upper: Tensor, refine: int) -> _Settled:
        """As for scalars; what a vector leaves is spread over the vectors after it."""
        fields = self.grid.fit(target.T.contiguous(), upper.diagonal().square())
        residual, codes = torch.zeros_like(target), []
        for index, part in self._parts(target):
            own = upper[part, part]
            pending = upper[: part.start, part].T @ residual[: part.start]
            wanted = sweeps.wanted(own, pending).add_(target[part])
            code, value = self._choose(fields, index, wanted, own @ own.T)
            codes.append(code)
            residual[part] = target[part] - value
        settled = _Settled(fields, torch.stack(codes), target - residual)
        if refine == 0:
            return settled
        cost = upper @ upper.T
        return self.improve(settled, cost @ residual, cost)

    def improve(self, present: _Settled, gradient: Tensor, cost: Tensor) -> _Settled:
        """Other fields for the same codes, then another code for one vector after the other.

        Each only where that lowers e^T A e.

        gradient: [n, rows], A e, and A = cost.
        """
        settled, gradient = self._refitted(present, gradient, cost)
        values, codes = settled.values.clone(), settled.codes.clone()
        for index, part in self._parts(values):
            own, asked = cost[part, part], gradient[part]
            wanted = torch.linalg.solve(own, asked) + values[part]
            code, value = self._choose(settled.fields, index, wanted, own)
            moved = value - values[part]
            better = (moved * (own @ moved - 2 * asked)).sum(0) < 0
            moved = torch.where(better, moved, 0.0)
            codes[index] = torch.where(better, code, codes[index])
            values[part] = torch.where(better, value, values[part])
            gradient = gradient - cost[:, part] @ moved
        return _Settled(settled.fields, codes, values)

    def pack(self, fields: Fields, codes: Tensor) -> Tensor:
        """uint8 [n, bytes] from codes int64 [n, vectors]."""
        return self.grid.pack(fields, codes)

    def _refitted(
        self, present: _Settled, gradient: Tensor, cost: Tensor
    ) -> tuple[_Settled, Tensor]:
        """With fields that are better for these codes, and the gradient there."""
        diagonal = cost.diagonal()
        wanted = gradient / diagonal.unsqueeze(1) + present.values
        codes = present.codes.T.contiguous()
        fields = self.grid.refit(wanted.T.contiguous(), codes, diagonal)
        values = self.grid.decode(self.grid.pack(fields, codes)).T
        return _accepted(present, fields, values, gradient, cost)

    def _choose(
        self, fields: Fields, index: int, wanted: Tensor, cost: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Codes [rows] and values [vector, rows] near what is wanted [vector, rows]."""
        code, value = self.grid.choose(fields, index, wanted.T.contiguous(), cost.diagonal(), cost)
        return code, value.T

    def _parts(self, values: Tensor) -> Iterator[tuple[int, slice[int, int, None]]]:
        return (
            (index, slice(first, first + self.vector))
            for index, first in enumerate(range(0, values.shape[0], self.vector))
        )


def _accepted(
    present: _Settled, fields: Fields, values: Tensor, gradient: Tensor, cost: Tensor
) -> tuple[_Settled, Tensor]:
    """Other fields where their values [n, rows] lower e^T A e, and the gradient A e there."""
    moved = values - present.values
    costly = cost @ moved
    # e^T A e changes by -2 moved^T A e + moved^T A moved
    better = (moved * (costly - 2 * gradient)).sum(0) < 0
    chosen = {
        name: torch.where(better.view(-1, *[1] * (new.dim() - 1)), new, present.fields[name])
        for name, new in fields.items()
    }
    values = torch.where(better, values, present.values)
    return _Settled(chosen, present.codes, values), gradient - torch.where(better, costly, 0.0)
