"""Hessians and their factors: tensor -> tensor, no files, no models."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from llmopt.errors import LlmoptError

# A Hessian of fewer columns is one matrix product; from here on, computing the blocks on and above
# the diagonal alone saves more than the extra calls cost.
_SPLIT_COLUMNS = 2048
_SPLIT_BLOCK = 1024


@dataclass(frozen=True, kw_only=True)
class Factor:
    """A damped Hessian as `upper @ upper.T`.

    upper: [cols, cols] float32, upper triangular with a positive diagonal.
    damping: what was added to the diagonal, as a fraction of its mean over the live columns; may
    be more than was asked for.
    dead: [cols] bool, the inputs that were never non-zero.
    """

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
    """Factor H + damping * mean(diag H) * I with R upper triangular and H = R R^T.

    GPTQ's factor U with H^-1 = U^T U is R^-1, so one Cholesky of the flipped matrix gives both.
    The error feedback needs only R: a rounding error d_j of column j moves the best value of a
    later column k by d_j R_jk / R_kk, and R_kk^2 = 1 / U_kk^2 is what an error left in column k
    costs once all later columns have made up for it as well as they can.

    hessian: [cols, cols] float32, symmetric. `order` [cols] int64 permutes it first.
    A column whose diagonal is 0 gets the mean diagonal, which leaves it on its own. When float32
    finds the matrix not positive definite, float64 is tried, then the damping grows by `increment`.
    """
    if not bool(torch.isfinite(hessian).all()):
        raise LlmoptError(
            "the calibration statistics hold NaN or infinite values",
            hint="the model overflows on the calibration text: walk it in float32",
        )
    damped = hessian.clone() if order is None else hessian[order][:, order]
    diagonal = damped.diagonal()
    dead = diagonal <= 0
    live_mean = diagonal[~dead].mean() if not bool(dead.all()) else diagonal.new_ones(())
    diagonal[dead] = live_mean
    added = 0.0
    for _ in range(attempts):
        diagonal.add_(live_mean * (damping - added))
        added = damping
        upper = _flipped_cholesky(damped)
        if upper is not None:
            return Factor(upper=upper, damping=damping, dead=dead)
        damping += increment
    raise LlmoptError(
        f"the Hessian is not positive definite even with damping {damping - increment:g}"
    )


def _flipped_cholesky(matrix: Tensor) -> Tensor | None:
    """R upper with matrix = R R^T, or None where the matrix is not positive definite."""
    flipped = matrix.flip(0, 1)
    for dtype in (torch.float32, torch.float64):
        lower, status = torch.linalg.cholesky_ex(flipped.to(dtype))
        if int(status) == 0 and bool(torch.isfinite(lower).all()):
            return lower.flip(0, 1).to(torch.float32)
    return None


def triangular_inverse(upper: Tensor, *, block: int = 256) -> Tensor:
    """The inverse of an upper triangular [n, n]; by halves, so that most of it is matrix products.

    [[A, B], [0, D]]^-1 = [[A^-1, -A^-1 B D^-1], [0, D^-1]].
    """
    n = upper.shape[0]
    if n <= block:
        eye = torch.eye(n, dtype=upper.dtype, device=upper.device)
        return torch.linalg.solve_triangular(upper, eye, upper=True)
    half = n // 2
    top = triangular_inverse(upper[:half, :half], block=block)
    bottom = triangular_inverse(upper[half:, half:], block=block)
    inverse = torch.zeros_like(upper)
    inverse[:half, :half] = top
    inverse[half:, half:] = bottom
    inverse[:half, half:] = -(top @ upper[:half, half:] @ bottom)
    return inverse


def accumulate_hessian(hessian: Tensor, x: Tensor, count: int) -> int:
    """Fold the tokens x into hessian = E[x x^T], in place; returns the new number of tokens.

    hessian: [cols, cols] float32, the mean over the `count` tokens seen so far.
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
            if rows != cols:
                hessian[cols, rows] = hessian[rows, cols].T
    return total


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
    if device.type != "cpu" or not torch.cpu._is_amx_tile_supported():
        yield
        return
    settings = torch.backends.mkldnn.matmul
    before = settings.fp32_precision
    settings.fp32_precision = "bf16"
    try:
        yield
    finally:
        settings.fp32_precision = before
