"""Statistics of an input, gathered in parts."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from llmopt import linalg
from llmopt.linalg import InputStatistics


def uneven(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sums as a CPU gives them whose kernels add in another order above the diagonal."""
    sound = linalg.accumulate_hessian

    def accumulate(hessian: Tensor, x: Tensor, count: int) -> int:
        total = sound(hessian, x, count)
        hessian.copy_(hessian.triu() * (1 + 1e-6) + hessian.tril(-1))
        return total

    monkeypatch.setattr(linalg, "accumulate_hessian", accumulate)


def test_the_hessian_is_symmetric_on_every_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    uneven(monkeypatch)
    x = torch.randn(90, 300, generator=torch.Generator().manual_seed(0))
    statistics = InputStatistics.empty(300)
    for part in (x[:10], x[10:]):
        statistics.add(part)
        assert torch.equal(statistics.hessian, statistics.hessian.T)
        assert torch.equal(statistics.diagonal, statistics.hessian.diagonal())


def test_parts_add_up() -> None:
    x = torch.randn(90, 8, generator=torch.Generator().manual_seed(0))
    statistics = InputStatistics.empty(8)
    for part in (x[:10], x[10:10], x[10:].view(2, 40, 8)):
        statistics.add(part)
    assert statistics.tokens == 90
    assert torch.allclose(statistics.mean_abs, x.abs().mean(0), atol=1e-6)
    assert torch.allclose(statistics.hessian, x.T @ x / 90, atol=1e-2)
    assert torch.allclose(statistics.diagonal, x.square().mean(0), atol=1e-2)
