"""The order in which feedback and descent visit blocks of columns, and the sums that visits need.

Feedback goes from the first block to the last: one is asked for R^T times the residual of the
columns before it. Descent asks a block for H times the residual of all columns, and its sweeps go
forward and backward in turn: what the columns on one side of a block ask of it was summed by the
sweep before, which left them as they are. So a sweep takes half of the products that it would take
alone (Conrad and Wallach 1979, of symmetric relaxation).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TypeAlias

import torch
from torch import Tensor

from llmopt.linalg import Factor, Part

# Columns that share one product with all others; blocks among them are settled one by one.
_SPAN = 512

#: columns start to stop
Columns: TypeAlias = "slice[int, int, None]"
#: changes the residual of a block of columns, given what others ask of it, [n, rows] and its own
#: to overwrite; returns by how much it was changed
Visit: TypeAlias = "Callable[[Columns, Tensor], Tensor]"


def feed_back(factor: Factor, residual: Tensor, width: int, visit: Visit) -> None:
    """Visit each block of `width` columns of residual [cols, rows] once, from first to last."""
    for span in _pieces(slice(0, len(residual)), _span(width)):
        asked = factor.upper.before(span, residual)
        _visit(factor.upper, span, width, asked, visit)


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
    # for each column, what the columns ask of it that a sweep visits later
    later = torch.empty_like(residual)
    for sweep in range(sweeps):
        backward = sweep % 2 == 1
        for span in _pieces(slice(0, len(residual)), _span(width), backward=backward):
            earlier = (damped.after if backward else damped.before)(span, residual)
            asked = later[span].clone() if sweep else damped.after(span, residual)
            later[span] = earlier  # as the next sweep, which goes the other way, will need it
            asked.add_(earlier).addmm_(damped.within(span), residual[span])
            _visit(damped, span, width, asked, visit, backward=backward)
    return _losses(factor, residual, later, _span(width))


def _losses(factor: Factor, residual: Tensor, beside: Tensor, size: int) -> Tensor:
    """As `descend`; beside [cols, rows] is what the columns on one side of a span ask of it."""
    found = residual.new_zeros(residual.shape[1], dtype=torch.float64)
    for span in _pieces(slice(0, len(residual)), size):
        own = residual[span]
        costly = torch.addmm(beside[span], factor.damped.within(span), own, beta=2)
        found += costly.sub_(own, alpha=factor.added).mul_(own).sum(0, dtype=torch.float64)
    return found


def _visit(
    part: Part, span: Columns, width: int, asked: Tensor, visit: Visit, *, backward: bool = False
) -> None:
    """Visit the blocks of a span; `asked` [n, rows] is of its columns, and visits change it."""
    for block in _pieces(span, width, backward=backward):
        change = visit(block, asked[_within(span, block)])
        if backward:
            rest = slice(span.start, block.start)
            coupling = part.between(rest, block)
        else:
            rest = slice(block.stop, span.stop)
            coupling = part.between(block, rest).T
        if rest.start < rest.stop:
            asked[_within(span, rest)].addmm_(coupling, change)


def _span(width: int) -> int:
    return max(width, _SPAN // width * width)


def _pieces(whole: Columns, size: int, *, backward: bool = False) -> Iterator[Columns]:
    """The same columns, so many at a time."""
    starts = range(whole.start, whole.stop, size)
    for start in reversed(starts) if backward else starts:
        yield slice(start, min(start + size, whole.stop))


def _within(span: Columns, part: Columns) -> Columns:
    """Where in the span the part's columns stand."""
    return slice(part.start - span.start, part.stop - span.start)
