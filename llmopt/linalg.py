"""Hessians, their statistics and factors: tensor -> tensor, no files, no models."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from llmopt import processor
from llmopt.errors import LlmoptError

# A Hessian of fewer columns is one matrix product; from here on, computing the blocks on and above
# the diagonal alone saves more than the extra calls cost.
_SPLIT_COLUMNS = 2048
_SPLIT_BLOCK = 1024
# Squares of this size are mirrored at once: two of them fit into a core's cache.
_MIRROR_BLOCK = 256


@dataclass(frozen=True, kw_only=True)
class Factor:
    """A damped Hessian, in the order that was asked for, as `upper @ upper.T`.

    damped: [cols, cols] float32. upper: [cols, cols] float32, upper triangular, diagonal > 0.
    damping: what was added to the diagonal, as a fraction of its mean over the live columns; may
    be more than was asked for. dead: [cols] bool, in that order too: inputs that were always zero.
    """

    damped: Tensor
    upper: Tensor
    damping: float
    dead: Tensor


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
    if not all_finite(hessian):
        raise LlmoptError(
            "the calibration statistics hold NaN or infinite values",
            hint="what flows through the model on this text is too large for float32",
        )
    damped = (
        hessian.clone() if order is None else hessian.index_select(0, order).index_select(1, order)
    )
    diagonal = damped.diagonal()
    before = diagonal.clone()
    dead = before <= 0
    mean = before[~dead].mean() if not bool(dead.all()) else before.new_ones(())
    for attempt in range(attempts):
        used = damping + attempt * increment
        torch.add(before, mean * used, out=diagonal)
        upper = _flipped_cholesky(damped)
        if upper is not None:
            return Factor(damped=damped, upper=upper, damping=used, dead=dead)
    raise LlmoptError(f"the Hessian is not positive definite even with damping {used:g}")


def all_finite(values: Tensor) -> bool:
    """Whether no value is NaN or infinite; one pass, no copy."""
    low, high = torch.aminmax(values)
    return math.isfinite(float(low)) and math.isfinite(float(high))


def _flipped_cholesky(matrix: Tensor) -> Tensor | None:
    """R upper with matrix = R R^T, or None where the matrix is not positive definite."""
    for dtype in (torch.float32, torch.float64):
        lower, status = torch.linalg.cholesky_ex(matrix.flip(0, 1).to(dtype))
        if int(status) == 0 and bool(torch.isfinite(lower).all()):
            return torch.flip(lower.to(torch.float32), (0, 1))
    return None


@dataclass(frozen=True, kw_only=True)
class MeanSquares:
    """mean: float32 [cols], E[x^2] of the tokens that reached an input. tokens: how many."""

    mean: Tensor
    tokens: int


class InputStatistics:
    """What calibration saw at one input shared by one or more linears.

    hessian: [cols, cols] float32, E[x x^T], symmetric to the bit on every CPU. mean_abs: [cols]
    float32, E|x|. tokens: how many.
    """

    def __init__(self, *, hessian: Tensor, mean_abs: Tensor, tokens: int = 0) -> None:
        self.mean_abs, self.tokens = mean_abs, tokens
        self._hessian, self._symmetric = hessian, True

    @classmethod
    def empty(cls, cols: int, device: torch.device | str = "cpu") -> InputStatistics:
        """Statistics of no tokens yet."""
        return cls(
            hessian=torch.zeros(cols, cols, device=device),
            mean_abs=torch.zeros(cols, device=device),
        )

    @property
    def hessian(self) -> Tensor:
        """Made symmetric when it is first read after tokens were added."""
        if not self._symmetric:
            mirror_upper(self._hessian)
            self._symmetric = True
        return self._hessian

    @property
    def diagonal(self) -> Tensor:
        """[cols] float32, E[x^2]: the importance of each input channel."""
        return self._hessian.diagonal()

    @property
    def squares(self) -> MeanSquares:
        """The diagonal in memory of its own, and the tokens."""
        return MeanSquares(mean=self.diagonal.clone(), tokens=self.tokens)

    def add(self, x: Tensor) -> None:
        """Fold in activations x [..., cols]."""
        x = x.reshape(-1, x.shape[-1])
        total = self.tokens + x.shape[0]
        if total == self.tokens:
            return
        self.mean_abs.mul_(self.tokens / total).add_(
            x.abs().sum(dim=0, dtype=torch.float32), alpha=1 / total
        )
        self.tokens = accumulate_hessian(self._hessian, x, self.tokens)
        self._symmetric = False


def accumulated(statistics: InputStatistics | None, x: Tensor) -> InputStatistics:
    """Statistics with x [..., cols] folded in; None stands for those of nothing yet."""
    if statistics is None:
        statistics = InputStatistics.empty(x.shape[-1], x.device)
    statistics.add(x)
    return statistics


def accumulate_hessian(hessian: Tensor, x: Tensor, count: int) -> int:
    """Fold the tokens x into hessian = E[x x^T], in place; returns the new number of tokens.

    hessian: [cols, cols] float32, the mean over the `count` tokens seen so far. Only what stands on
    and above its diagonal is summed; `mirror_upper` makes it whole once all tokens are in.
    x: [..., cols], any floating dtype; every leading dimension counts tokens.
    On CPUs with AMX the products are computed from bfloat16 operands with float32 sums: a relative
    error of 7e-4, far below any damping.
    """
    x = x.reshape(-1, x.shape[-1]).to(torch.float32)
    total = count + x.shape[0]
    if total == count:
        return count
    keep, gain = count / total, 1 / total
    with fast_products(x.device):
        for rows, cols in _upper_blocks(x.shape[1]):
            hessian[rows, cols].addmm_(x[:, rows].T, x[:, cols], beta=keep, alpha=gain)
    return total


def mirror_upper(matrix: Tensor) -> None:
    """Copy what stands above the diagonal of a square matrix to below it, in place.

    A product x^T x alone need not be symmetric to the bit: in which order a CPU's kernel adds
    depends on where in the result an element stands.
    """
    for start in range(0, len(matrix), _MIRROR_BLOCK):
        rows, below = slice(start, start + _MIRROR_BLOCK), slice(start + _MIRROR_BLOCK, None)
        square = matrix[rows, rows]
        square.copy_(square.triu() + square.triu(1).T)
        matrix[below, rows] = matrix[rows, below].T


def _upper_blocks(cols: int) -> Iterator[tuple[slice, slice]]:
    """The blocks on and above the diagonal of a [cols, cols] matrix."""
    if cols < _SPLIT_COLUMNS:
        yield slice(0, cols), slice(0, cols)
        return
    starts = [slice(i, min(i + _SPLIT_BLOCK, cols)) for i in range(0, cols, _SPLIT_BLOCK)]
    for i, rows in enumerate(starts):
        for columns in starts[i:]:
            yield rows, columns


@contextmanager
def fast_products(device: torch.device) -> Iterator[None]:
    """Let float32 matrix products use bfloat16 operands inside, where the CPU has AMX for them.

    Elsewhere nothing changes: without AMX bfloat16 is slower, and on a GPU float32 is fast enough.
    The process-wide setting is put back on the way out.
    """
    if device.type != "cpu" or not processor.fast_bfloat16():
        yield
        return
    settings = torch.backends.mkldnn.matmul  # type: ignore[attr-defined]  # set at import
    before = settings.fp32_precision
    settings.fp32_precision = "bf16"
    try:
        yield
    finally:
        settings.fp32_precision = before
