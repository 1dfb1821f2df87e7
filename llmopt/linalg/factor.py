"""A damped Hessian and its factor: two matrices, or of wide inputs the halves of one square."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from llmopt.errors import LlmoptError
from llmopt.linalg.hessian import all_finite, mirror_upper
from llmopt.specs.walking import FACTOR_BLOCK

#: from more columns than this, a matrix is factored in place
BLOCK = FACTOR_BLOCK
# Columns that a factored block is taken from at once: half of what is computed of as many rows at
# the diagonal is thrown away.
_STRIP = 512


class Part(Protocol):
    """What error feedback reads of a matrix M [cols, cols], on and above its diagonal."""

    def within(self, block: slice[int, int, None]) -> Tensor:
        """M[block, block]."""

    def between(self, block: slice[int, int, None], later: slice[int, int, None]) -> Tensor:
        """M[block, later], for columns that come after those of the block."""

    def before(self, span: slice[int, int, None], residual: Tensor) -> Tensor:
        """M[:start, span]^T residual[:start]: of columns before a span; residual [cols, rows]."""


class Symmetric(Part, Protocol):
    """What descent reads of a symmetric one."""

    def after(self, span: slice[int, int, None], residual: Tensor) -> Tensor:
        """M[stop:, span]^T residual[stop:]: of columns after a span; residual [cols, rows]."""


@dataclass(frozen=True, kw_only=True)
class Factor:
    """A damped Hessian, in the order that was asked for, as R R^T with R upper triangular.

    damped: the matrix, float32. upper: R, whose diagonal is > 0. diagonal: [cols] float32, that of
    R. damping: what was added to the Hessian's diagonal, as a fraction of its mean over the live
    columns; may be more than was asked for. added: the same as it is.
    """

    damped: Symmetric
    upper: Part
    diagonal: Tensor
    damping: float
    added: float


@dataclass(frozen=True)
class Upper:
    """What stands on and above the diagonal of a square; what stands below is not looked at."""

    square: Tensor

    def within(self, block: slice[int, int, None]) -> Tensor:
        """As `Part`."""
        return self.square[block, block].triu()

    def between(self, block: slice[int, int, None], later: slice[int, int, None]) -> Tensor:
        """As `Part`."""
        return self.square[block, later]

    def before(self, span: slice[int, int, None], residual: Tensor) -> Tensor:
        """As `Part`."""
        return self.square[: span.start, span].T @ residual[: span.start]


@dataclass(frozen=True)
class Whole:
    """A symmetric matrix."""

    square: Tensor

    def within(self, block: slice[int, int, None]) -> Tensor:
        """As `Part`."""
        return self.square[block, block]

    def between(self, block: slice[int, int, None], later: slice[int, int, None]) -> Tensor:
        """As `Part`."""
        return self.square[block, later]

    def before(self, span: slice[int, int, None], residual: Tensor) -> Tensor:
        """As `Part`."""
        return self.square[: span.start, span].T @ residual[: span.start]

    def after(self, span: slice[int, int, None], residual: Tensor) -> Tensor:
        """As `Symmetric`."""
        return self.square[span.stop :, span].T @ residual[span.stop :]


@dataclass(frozen=True)
class Lower:
    """A symmetric matrix, of which a square has what stands below the diagonal."""

    square: Tensor
    diagonal: Tensor

    def within(self, block: slice[int, int, None]) -> Tensor:
        """As `Part`."""
        below = self.square[block, block].tril(-1)
        return (below + below.T).diagonal_scatter(self.diagonal[block])

    def between(self, block: slice[int, int, None], later: slice[int, int, None]) -> Tensor:
        """As `Part`."""
        return self.square[later, block].T

    def before(self, span: slice[int, int, None], residual: Tensor) -> Tensor:
        """As `Part`."""
        return self.square[span, : span.start] @ residual[: span.start]

    def after(self, span: slice[int, int, None], residual: Tensor) -> Tensor:
        """As `Symmetric`."""
        return self.square[span.stop :, span].T @ residual[span.stop :]


def damped_factor(
    hessian: Tensor,
    damping: float = 0.01,
    *,
    order: Tensor | None = None,
    increment: float = 0.01,
    attempts: int = 100,
) -> Factor:
    """Factor H + damping * mean(diag H) * I as R R^T with R upper triangular.

    GPTQ's factor U with H^-1 = U^T U is R^-1, and its feedback needs R alone: an error d_j left in
    column j moves the best value of a later column k by d_j R_jk / R_kk (columns j < k all fixed,
    those after k still free), and an error in column k costs R_kk^2 = 1 / U_kk^2 once all later
    columns have made up for it. So one Cholesky of the flipped matrix replaces GPTQ's
    Cholesky, inverse and second Cholesky, or the triangular inverse that would stand in for them.

    hessian: [cols, cols] float32, symmetric; `order` [cols] int64 permutes rows and columns first.
    Dead columns keep the damping alone as their diagonal, which leaves each on its own and weighs
    it next to nothing. Where float32 finds the matrix not positive definite float64 is tried, then
    the damping grows by `increment`; LlmoptError after `attempts`.
    """
    check_finite(hessian)
    damped = (
        hessian.clone() if order is None else hessian.index_select(0, order).index_select(1, order)
    )
    before = damped.diagonal().clone()
    for used, added in _dampings(before, damping, increment, attempts):
        damped.diagonal().copy_(before + added)
        upper = _flipped_cholesky(damped)
        if upper is not None:
            return Factor(
                damped=Whole(damped), upper=Upper(upper), diagonal=upper.diagonal(), damping=used,
                added=float(added),
            )  # fmt: skip
    raise AssertionError("the dampings end in an error")


def factor_in_place(
    square: Tensor,
    before: Tensor,
    damping: float = 0.01,
    *,
    increment: float = 0.01,
    attempts: int = 100,
) -> Factor:
    """As `damped_factor`, in no memory but the square's own and that of a few blocks.

    square: [cols, cols] float32. Below its diagonal stands the Hessian, in the order of rounding,
    and stays; on and above it R is made. before: [cols] float32, the Hessian's diagonal. Only
    where float32 does not do, there is a second square, in float64, for as long as this runs.
    """
    for used, added in _dampings(before, damping, increment, attempts):
        diagonal = before + added
        for dtype in (torch.float32, torch.float64):
            mirror_upper(square.T)
            square.diagonal().copy_(diagonal)
            if _factored(square, dtype):
                return Factor(
                    damped=Lower(square, diagonal), upper=Upper(square),
                    diagonal=square.diagonal().clone(), damping=used, added=float(added),
                )  # fmt: skip
    raise AssertionError("the dampings end in an error")


def check_finite(hessian: Tensor) -> None:
    """LlmoptError where a Hessian holds NaN or infinite values."""
    if not all_finite(hessian):
        raise LlmoptError(
            "the calibration statistics hold NaN or infinite values",
            hint="what flows through the model on this text is too large for float32",
        )


def _dampings(
    before: Tensor, damping: float, increment: float, attempts: int
) -> Iterator[tuple[float, Tensor]]:
    """Each damping to try, and what it adds to the diagonal; LlmoptError when all were tried."""
    live = before > 0
    mean = before[live].mean() if bool(live.any()) else before.new_ones(())
    for attempt in range(attempts):
        used = damping + attempt * increment
        yield used, mean * used
    raise LlmoptError(f"the Hessian is not positive definite even with damping {used:g}")


def _flipped_cholesky(matrix: Tensor) -> Tensor | None:
    """R upper with matrix = R R^T, or None where the matrix is not positive definite."""
    for dtype in (torch.float32, torch.float64):
        upper = _cholesky_as(matrix, dtype)
        if upper is not None:
            return upper.to(torch.float32)
    return None


def _cholesky_as(matrix: Tensor, dtype: torch.dtype) -> Tensor | None:
    """The same, computed in this dtype alone."""
    lower, status = torch.linalg.cholesky_ex(matrix.flip(0, 1).to(dtype))
    if int(status) == 0 and bool(torch.isfinite(lower).all()):
        return torch.flip(lower, (0, 1))
    return None


def _factored(square: Tensor, dtype: torch.dtype) -> bool:
    """Replace what stands on and above the diagonal by its factor R, computed in this dtype.

    False where that finds the matrix not positive definite; what stands below is left alone.
    """
    if square.dtype == dtype:
        return _factored_by_blocks(square)
    finer = square.to(dtype)
    if not _factored_by_blocks(finer):
        return False
    for rows in _blocks(len(square)):
        after = slice(rows.stop, None)
        square[rows, after] = finer[rows, after].to(square.dtype)
        _replace_upper(square[rows, rows], finer[rows, rows].to(square.dtype))
    return True


def _factored_by_blocks(square: Tensor) -> bool:
    """From the last block of columns to the first: its own factor, what stands above it, the rest.

    That is LAPACK's blocked Cholesky for the flipped matrix, which nothing has to be flipped for.
    """
    blocks = _blocks(len(square))
    for own in reversed(blocks):
        corner = square[own, own]
        upper = _cholesky_as(corner.triu() + corner.triu(1).T, square.dtype)
        if upper is None:
            return False
        _replace_upper(corner, upper)
        above = [rows for rows in blocks if rows.stop <= own.start]
        for rows in above:
            part = square[rows, own]
            part.copy_(torch.linalg.solve_triangular(upper.T, part, upper=False, left=False))
        for columns in _pieces(own.start, _STRIP):
            beside = square[columns, own].T
            before = slice(0, columns.start)
            square[before, columns].addmm_(square[before, own], beside, alpha=-1)
            square[columns, columns].sub_((square[columns, own] @ beside).triu_())
    return True


def _replace_upper(corner: Tensor, upper: Tensor) -> None:
    """Put an upper triangle into a square, which keeps what stands below its diagonal."""
    corner.copy_(corner.tril(-1) + upper.triu())


def _blocks(cols: int) -> list[slice[int, int, None]]:
    return _pieces(cols, BLOCK)


def _pieces(cols: int, size: int) -> list[slice[int, int, None]]:
    return [slice(i, min(i + size, cols)) for i in range(0, cols, size)]
