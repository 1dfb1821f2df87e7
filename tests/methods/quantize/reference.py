"""Weights with correlated inputs, and a GPTQ written for clarity in float64."""

from __future__ import annotations

import torch
from torch import Tensor

from llmopt.grids.base import GridOptions, QuantizedTensor
from llmopt.linalg import InputMoments, InputStatistics

Problem = tuple[Tensor, InputStatistics]


def make_problem(rows: int, cols: int, seed: int = 0, tokens: int = 600) -> Problem:
    """weight [rows, cols] and statistics of inputs that are correlated and uneven."""
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(cols, cols, generator=generator) / cols**0.5
    x = torch.randn(tokens, cols, generator=generator) @ (mixing + 0.5 * torch.eye(cols))
    x *= torch.rand(cols, generator=generator) * 2 + 0.2
    statistics = InputStatistics.empty(cols, InputMoments(hessian=True))
    statistics.add(x)
    return torch.randn(rows, cols, generator=generator) / cols**0.5, statistics


def naive_gptq(
    weight: Tensor, hessian: Tensor, options: GridOptions, damping: float, order: Tensor
) -> Tensor:
    """The values [rows, cols] that GPTQ gives, column by column in float64, with minmax scales."""
    w, h = weight.double()[:, order], hessian.double()[order][:, order]
    h = h + damping * h.diagonal().mean() * torch.eye(len(h), dtype=torch.float64)
    u = torch.linalg.cholesky(torch.linalg.inv(h), upper=True)
    size, top = options.group_size, 2**options.bits - 1
    values = torch.zeros_like(w)
    for i in range(w.shape[1]):
        if i % size == 0:
            block = w[:, i : i + size]
            if options.symmetric:
                span, zero = 2 * block.abs().amax(1), torch.full((len(w),), (top + 1) // 2)
            else:
                low, high = block.amin(1).clamp(max=0), block.amax(1).clamp(min=0)
                span = high - low
            scale = (span / top).float().half().double()
            if not options.symmetric:
                zero = (-low / scale).round().clamp(options.min_zero, top)
        codes = ((w[:, i] / scale).round() + zero).clamp(0, top)
        values[:, i] = (codes - zero) * scale
        error = (w[:, i] - values[:, i]) / u[i, i]
        w[:, i:] -= error.unsqueeze(1) * u[i, i:]
    back = torch.empty_like(values)
    back[:, order] = values
    return back


def objective(weight: Tensor, values: Tensor, hessian: Tensor) -> Tensor:
    """(w - q) H (w - q)^T of each row, in float64."""
    change = weight.double() - values.double()
    return ((change @ hessian.double()) * change).sum(1)


def damped(hessian: Tensor, damping: float) -> Tensor:
    return hessian + damping * hessian.diagonal().mean() * torch.eye(len(hessian))


def values_of(tensor: QuantizedTensor) -> Tensor:
    """Decoded by hand, so that the grid's decode is checked as well."""
    p, cols = tensor.params, tensor.codes.shape[1]
    size = cols if p.group_size == -1 else p.group_size
    index = torch.arange(cols) // size if p.group_index is None else p.group_index.long()
    return p.scale[:, index] * (tensor.codes.float() - p.zero[:, index])
