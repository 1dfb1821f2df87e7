"""Hessians, E[x x^T] of the inputs of linears: summed, mirrored and permuted in place.

A Hessian is symmetric, and what stands on and above its diagonal says all: below it there is room.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from llmopt import processor
from llmopt.specs.walking import PERMUTED_ROWS, split_rows

# Squares of this size are mirrored at once: two of them fit into a core's cache.
_MIRROR_BLOCK = 256


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


def all_finite(values: Tensor) -> bool:
    """Whether no value is NaN or infinite; one pass, no copy."""
    low, high = torch.aminmax(values)
    return math.isfinite(float(low)) and math.isfinite(float(high))


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


def permute_below(matrix: Tensor, order: Tensor) -> None:
    """Put the symmetric matrix that stands on and above the diagonal below it, in another order.

    matrix: [cols, cols]. order: int64 [cols]. matrix[i, j] becomes what stands for
    (order[i], order[j]), for i > j; nothing else changes.
    """
    for start in range(0, len(order), PERMUTED_ROWS):
        stop = min(start + PERMUTED_ROWS, len(order))
        found = _rows(matrix, order[start:stop], above=True).index_select(1, order[:stop])
        matrix[start:stop, :start] = found[:, :start]
        own = matrix[start:stop, start:stop]
        own.copy_(own.triu() + found[:, start:].tril(-1))


def permute_above(matrix: Tensor, order: Tensor) -> None:
    """The other way: from what stands on and below the diagonal to above it."""
    for start in range(0, len(order), PERMUTED_ROWS):
        stop = min(start + PERMUTED_ROWS, len(order))
        found = _rows(matrix, order[start:stop], above=False).index_select(1, order[:stop])
        matrix[:start, start:stop] = found[:, :start].T
        own = matrix[start:stop, start:stop]
        own.copy_(own.tril() + found[:, start:].tril(-1).T)


def _rows(matrix: Tensor, chosen: Tensor, *, above: bool) -> Tensor:
    """Rows [n, cols] of the symmetric matrix that stands on and above the diagonal, or below it."""
    right = torch.arange(len(matrix), device=matrix.device) > chosen.unsqueeze(1)
    rows, columns = matrix.index_select(0, chosen), matrix.index_select(1, chosen).T
    return torch.where(right if above else ~right, rows, columns)


def _upper_blocks(cols: int) -> Iterator[tuple[slice, slice]]:
    """The blocks on and above the diagonal of a [cols, cols] matrix."""
    size = split_rows(cols)
    for start in range(0, cols, size):
        yield slice(start, min(start + size, cols)), slice(start, cols)


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
