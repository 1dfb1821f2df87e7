"""The order in which feedback and descent visit blocks of columns, and the sums that visits need.

Feedback goes from the first block to the last: one is asked for R^T times the residual of the
columns before it. Descent asks a block for H times the residual of all columns, and its sweeps go
forward and backward in turn: what the columns on one side of a block ask of it was summed by the
sweep before, which left them as they are. So a sweep takes half of the products that it would take
alone (Conrad and Wallach 1979, of symmetric relaxation).

Rows do not depend on each other, so each thread has some of its own from the first column to the
last: a visit is many small steps, and to wake other threads for one takes as long as the step.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import TypeAlias, TypeVar

import torch
from torch import Tensor

from llmopt.linalg import Factor, Part, Symmetric
from llmopt.processor import side_by_side
from llmopt.specs import walking

# Columns that share one product with all others; blocks among them are settled one by one.
_SPAN = 512
# Weights that another device solves at once.
_DEVICE_CHUNK = 1 << 25

T = TypeVar("T")
#: columns start to stop
Columns: TypeAlias = "slice[int, int, None]"
#: settles the residual of a block of columns, given what is asked of it, [n, rows], which it may
#: overwrite
Visit: TypeAlias = "Callable[[Columns, Tensor], None]"


def by_rows(weight: Tensor, solve: Callable[[Tensor], T]) -> list[T]:
    """solve(part) for all of weight [rows, cols], some rows at a time, which are independent.

    How many does not depend on the number of threads, and neither do results.
    """
    cols = weight.shape[1]
    if not weight.is_cpu:
        return [solve(part) for part in torch.split(weight, max(1, _DEVICE_CHUNK // cols))]
    parts = math.ceil(len(weight) / walking.rows_at_once(cols))
    return side_by_side(solve, torch.tensor_split(weight, parts))


def wanted(upper: Tensor, asked: Tensor) -> Tensor:
    """What columns [n, rows] should change by, of which R^T times errors before them is asked.

    upper: their block of R, [n, n].
    """
    # from the right, what is asked is read where it lies, and what comes back lies the same way
    found: Tensor = torch.linalg.solve_triangular(upper, asked.T, upper=True, left=False)
    return found.T


def feed_back(factor: Factor, residual: Tensor, width: int, visit: Visit) -> None:
    """Visit each block of `width` columns of residual [cols, rows] once, from first to last."""
    for span in _spans(residual, width):
        asked = factor.upper.before(span, residual)
        for block, earlier in _visited(factor.upper, span, width, residual, asked):
            visit(block, earlier)


def descend(
    factor: Factor, residual: Tensor, width: int, visit: Visit, sweeps: int
) -> Tensor | None:
    """Visit each block of `width` columns of residual [cols, rows] once a sweep.

    The first sweep goes from first to last, the second back, and so on. Returns what is left of
    d H d^T for each row d, without damping, float64 [rows]; None where there was no sweep.
    """
    if not sweeps:
        return None
    damped = factor.damped
    later = _asked_by_later(damped, residual, width)
    for sweep in range(sweeps):
        backward = sweep % 2 == 1
        for span in _spans(residual, width, backward=backward):
            asked = (damped.after if backward else damped.before)(span, residual)
            visited = _visited(damped, span, width, residual, asked, backward=backward)
            for block, earlier in visited:
                # all of H times the residual; the next sweep goes the other way
                whole = torch.addmm(later[block], damped.within(block), residual[block])
                whole.add_(earlier)
                later[block] = earlier
                visit(block, whole)
    return _losses(factor, residual, later, width)


def _asked_by_later(damped: Symmetric, residual: Tensor, width: int) -> Tensor:
    """[cols, rows]: what the columns after its block ask of each."""
    found = torch.empty_like(residual)
    for span in _spans(residual, width):
        found[span] = damped.after(span, residual)
        for block in _pieces(span, width):
            rest = slice(block.stop, span.stop)
            if rest.start < rest.stop:
                found[block].addmm_(damped.between(block, rest), residual[rest])
    return found


def _losses(factor: Factor, residual: Tensor, beside: Tensor, width: int) -> Tensor:
    """As `descend`; beside [cols, rows] is what the columns on one side of a block ask of it."""
    found = residual.new_zeros(residual.shape[1], dtype=torch.float64)
    for block in _pieces(slice(0, len(residual)), width):
        own = residual[block]
        costly = torch.addmm(beside[block], factor.damped.within(block), own, beta=2)
        found += costly.sub_(own, alpha=factor.added).mul_(own).sum(0, dtype=torch.float64)
    return found


def _visited(
    part: Part,
    span: Columns,
    width: int,
    residual: Tensor,
    asked: Tensor,
    *,
    backward: bool = False,
) -> Iterator[tuple[Columns, Tensor]]:
    """The blocks of a span in their order, each with what those before it ask of it [n, rows].

    asked: what the columns before the span ask of its own; overwritten.
    """
    for block in _pieces(span, width, backward=backward):
        yield block, asked[_within(span, block)]
        if backward:
            rest = slice(span.start, block.start)
            coupling = part.between(rest, block)
        else:
            rest = slice(block.stop, span.stop)
            coupling = part.between(block, rest).T
        if rest.start < rest.stop:
            asked[_within(span, rest)].addmm_(coupling, residual[block])


def _spans(residual: Tensor, width: int, *, backward: bool = False) -> Iterator[Columns]:
    size = max(width, _SPAN // width * width)
    return _pieces(slice(0, len(residual)), size, backward=backward)


def _pieces(whole: Columns, size: int, *, backward: bool = False) -> Iterator[Columns]:
    """The same columns, so many at a time."""
    starts = range(whole.start, whole.stop, size)
    for start in reversed(starts) if backward else starts:
        yield slice(start, min(start + size, whole.stop))


def _within(span: Columns, part: Columns) -> Columns:
    """Where in the span the part's columns stand."""
    return slice(part.start - span.start, part.stop - span.start)
