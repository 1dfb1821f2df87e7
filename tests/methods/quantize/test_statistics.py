"""Statistics of an input, gathered in parts."""

from __future__ import annotations

import torch

from llmopt.methods.quantize.base import InletStatistics


def test_parts_add_up() -> None:
    x = torch.randn(90, 8, generator=torch.Generator().manual_seed(0))
    statistics = InletStatistics.empty(8)
    for part in (x[:10], x[10:10], x[10:].view(2, 40, 8)):
        statistics.add(part)
    assert statistics.tokens == 90
    assert torch.allclose(statistics.mean_abs, x.abs().mean(0), atol=1e-6)
    assert torch.allclose(statistics.hessian, x.T @ x / 90, atol=1e-2)
    assert torch.allclose(statistics.diagonal, x.square().mean(0), atol=1e-2)
