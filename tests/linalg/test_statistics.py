"""Statistics of an input, gathered in parts."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from llmopt.errors import LlmoptError
from llmopt.linalg import InputMoments, InputStatistics, factor
from llmopt.linalg import hessian as hessians
from tests.linalg.inputs import activations, hessian_of

EVERYTHING = InputMoments(hessian=True, mean_abs=True)


def uneven(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sums as a CPU gives them whose kernels add in another order above the diagonal."""
    sound = hessians.accumulate_hessian

    def accumulate(hessian: Tensor, x: Tensor, count: int) -> int:
        total = sound(hessian, x, count)
        hessian.copy_(hessian.triu() * (1 + 1e-6) + hessian.tril(-1))
        return total

    monkeypatch.setattr(hessians, "accumulate_hessian", accumulate)


def test_the_hessian_is_symmetric_on_every_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    uneven(monkeypatch)
    x = torch.randn(90, 300, generator=torch.Generator().manual_seed(0))
    statistics = InputStatistics.empty(300, EVERYTHING)
    for part in (x[:10], x[10:]):
        statistics.add(part)
        assert torch.equal(statistics.hessian, statistics.hessian.T)
        assert torch.equal(statistics.diagonal, statistics.hessian.diagonal())


def test_parts_add_up() -> None:
    x = torch.randn(90, 8, generator=torch.Generator().manual_seed(0))
    statistics = InputStatistics.empty(8, EVERYTHING)
    for part in (x[:10], x[10:10], x[10:].view(2, 40, 8)):
        statistics.add(part)
    assert statistics.tokens == 90
    assert torch.allclose(statistics.mean_abs, x.abs().mean(0), atol=1e-6)
    assert torch.allclose(statistics.hessian, x.T @ x / 90, atol=1e-2)
    assert torch.allclose(statistics.diagonal, x.square().mean(0), atol=1e-2)


def test_only_what_is_wanted_is_collected() -> None:
    x = torch.randn(90, 8, generator=torch.Generator().manual_seed(0))
    statistics = InputStatistics.empty(8, InputMoments())
    for part in (x[:10], x[10:10], x[10:].view(2, 40, 8).bfloat16()):
        statistics.add(part)
    assert statistics.tokens == 90
    assert torch.allclose(statistics.diagonal, x.square().mean(0), atol=1e-2)
    with pytest.raises(LlmoptError, match=r"E\[x x\^T\] of this input was not collected"):
        statistics.hessian  # noqa: B018
    with pytest.raises(LlmoptError, match=r"E\|x\| of this input was not collected"):
        statistics.mean_abs  # noqa: B018


@pytest.mark.parametrize("wanted", [EVERYTHING, InputMoments(mean_abs=True)])
def test_statistics_of_two_inputs_together(wanted: InputMoments) -> None:
    x = activations(90, 8)
    first, second, both = (InputStatistics.empty(8, wanted) for _ in range(3))
    first.add(x[:20])
    second.add(x[20:])
    both.add(x)
    first.absorb(second)
    assert first.tokens == 90
    assert torch.allclose(first.diagonal, both.diagonal, atol=1e-2)
    assert torch.allclose(first.mean_abs, both.mean_abs, atol=1e-6)
    if wanted.hessian:
        assert torch.allclose(first.hessian, both.hessian, atol=1e-2)


@pytest.mark.parametrize("permuted", [False, True])
@pytest.mark.parametrize("mirrored", [False, True])
def test_a_hessian_is_put_back_after_a_factor_had_its_memory(
    permuted: bool, mirrored: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    statistics = InputStatistics.empty(40, EVERYTHING)
    statistics.add(activations(300, 40))
    before = statistics.hessian.clone() if mirrored else None
    order = torch.randperm(40) if permuted else None
    change = torch.randn(5, 40)
    lost = (change.double() @ hessian_of(activations(300, 40)).double() * change).sum(1)
    first = statistics.factor(0.01, order=order).diagonal
    monkeypatch.setattr(factor, "BLOCK", 7)
    for _ in range(2):
        assert torch.allclose(statistics.factor(0.01, order=order).diagonal, first, rtol=1e-3)
        assert torch.allclose(statistics.losses(change), lost, rtol=2e-3)
    statistics.factor(0.01, order=order)
    again = statistics.diagonal.clone()
    assert torch.equal(statistics.hessian, statistics.hessian.T)
    assert torch.equal(statistics.hessian.diagonal(), again)
    if before is not None:
        assert torch.equal(statistics.hessian, before)


@pytest.mark.parametrize("block", [7, 2048])
def test_a_factor_is_kept_until_something_changes(
    block: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(factor, "BLOCK", block)
    statistics, order = InputStatistics.empty(20, EVERYTHING), torch.randperm(20)
    statistics.add(activations(90, 20))
    first = statistics.factor(0.01, order=order)
    statistics.losses(torch.ones(1, 20))
    assert statistics.factor(0.01, order=order.clone()) is first
    assert statistics.factor(0.02, order=order) is not first
    assert statistics.factor(0.02) is not statistics.factor(0.02, order=order)
    last = statistics.factor(0.02)
    statistics.add(activations(9, 20))
    assert statistics.factor(0.02) is not last
