"""Factors of Hessians against float64 and torch's own routines, made of two squares and of one."""

from __future__ import annotations

from typing import Protocol

import pytest
import torch
from torch import Tensor

from llmopt.errors import LlmoptError
from llmopt.linalg import Factor, InputStatistics, factor
from tests.linalg.inputs import activations, hessian_of


class Way(Protocol):
    def __call__(self, h: Tensor, damping: float, order: Tensor | None = None) -> Factor: ...


@pytest.fixture(params=["two squares", "one square"])
def factored(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Way:
    if request.param == "one square":
        monkeypatch.setattr(factor, "BLOCK", 5)

    def way(h: Tensor, damping: float, order: Tensor | None = None) -> Factor:
        return InputStatistics(hessian=h.clone(), tokens=1).factor(damping, order=order)

    return way


def whole(part: factor.Part, cols: int) -> Tensor:
    return part.within(slice(0, cols))


@pytest.mark.parametrize("permuted", [False, True])
def test_factor_multiplies_back_and_is_the_inverse_of_gptqs(factored: Way, permuted: bool) -> None:
    h = hessian_of(activations(500, 48))
    order = torch.randperm(48, generator=torch.Generator().manual_seed(1)) if permuted else None
    found = factored(h, 0.01, order)
    expected = h.double() if order is None else h.double()[order][:, order]
    expected = expected + 0.01 * h.double().diagonal().mean() * torch.eye(48)
    upper = whole(found.upper, 48).double()
    assert torch.equal(upper, upper.triu())
    assert (upper.diagonal() > 0).all()
    assert torch.equal(upper.diagonal().float(), found.diagonal)
    assert torch.allclose(upper @ upper.T, expected, rtol=1e-4, atol=1e-5)
    assert torch.allclose(whole(found.damped, 48).double(), expected, rtol=1e-6)
    gptq = torch.linalg.cholesky(torch.linalg.inv(expected), upper=True)
    assert torch.allclose(torch.linalg.inv(upper), gptq, rtol=1e-3, atol=1e-4)
    assert found.damping == 0.01


def test_what_feedback_reads_is_the_matrix(factored: Way) -> None:
    """Blocks, what stands beside them, and products with what stands before and after."""
    found = factored(hessian_of(activations(300, 23)), 0.01)
    residual = torch.randn(23, 4, generator=torch.Generator().manual_seed(2))
    block, later, span = slice(6, 9), slice(9, 14), slice(6, 14)
    for part in (found.upper, found.damped):
        matrix = whole(part, 23)
        assert torch.equal(part.within(block), matrix[block, block])
        assert torch.equal(part.between(block, later), matrix[block, later])
        asked = matrix[:6, span].T @ residual[:6]
        assert torch.allclose(part.before(span, residual), asked, atol=1e-5)
    asked = whole(found.damped, 23)[14:, span].T @ residual[14:]
    assert torch.allclose(found.damped.after(span, residual), asked, atol=1e-5)


def test_both_ways_give_the_same_but_for_rounding(monkeypatch: pytest.MonkeyPatch) -> None:
    statistics = InputStatistics(hessian=hessian_of(activations(900, 130)), tokens=900)
    order = torch.argsort(statistics.diagonal, descending=True)
    two = statistics.factor(0.01, order=order)
    monkeypatch.setattr(factor, "BLOCK", 32)
    one = statistics.factor(0.01, order=order)
    assert torch.allclose(whole(one.upper, 130), whole(two.upper, 130), rtol=1e-4, atol=1e-5)
    assert torch.equal(whole(one.damped, 130), whole(two.damped, 130))


def test_dead_columns_stand_alone_and_do_not_count_in_the_mean(factored: Way) -> None:
    x = activations(400, 24)
    alive = whole(factored(hessian_of(x), 0.02).upper, 24)
    padded = torch.zeros(400, 26)
    padded[:, :5], padded[:, 6:25] = x[:, :5], x[:, 5:]
    upper = whole(factored(hessian_of(padded), 0.02).upper, 26)
    keep = torch.tensor([i not in (5, 25) for i in range(26)])
    assert torch.allclose(upper[keep][:, keep], alive, atol=1e-5)
    assert upper[5].count_nonzero() == upper[:, 5].count_nonzero() == 1


def test_all_dead(factored: Way) -> None:
    assert torch.allclose(whole(factored(torch.zeros(7, 7), 0.01).upper, 7), torch.eye(7) * 0.1)


def test_float64_saves_what_float32_cannot(factored: Way) -> None:
    # Eigenvalues 1 and 1e-8: positive definite, but not to float32's Cholesky.
    h = torch.ones(2, 2)
    h[0, 0] = 1 + 2.0**-23
    found = factored(torch.block_diag(*[h] * 8), 0.0)
    assert found.damping == 0
    upper = whole(found.upper, 16).double()
    assert torch.allclose(upper @ upper.T, whole(found.damped, 16).double(), atol=1e-6)


def test_damping_grows_until_it_is_enough(factored: Way) -> None:
    h = torch.eye(8)
    h[0, 1] = h[1, 0] = 1.038  # smallest eigenvalue -0.038
    found = factored(h, 0.005)
    assert found.damping == pytest.approx(0.045)
    upper = whole(found.upper, 8)
    assert torch.allclose(upper @ upper.T, h + 0.045 * torch.eye(8), atol=1e-6)
    assert torch.allclose(whole(found.damped, 8), h + 0.045 * torch.eye(8), atol=1e-6)


def test_hopeless_hessian_is_an_error() -> None:
    h = torch.eye(3)
    h[0, 1] = h[1, 0] = 50
    with pytest.raises(LlmoptError, match=r"not positive definite even with damping 0\.05"):
        factor.damped_factor(h, 0.01, attempts=5)
    with pytest.raises(LlmoptError, match=r"not positive definite even with damping 0\.05"):
        factor.factor_in_place(h, torch.ones(3), 0.01, attempts=5)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_overflowed_statistics_are_named(factored: Way, bad: float) -> None:
    h = torch.eye(6)
    h[1, 2] = h[2, 1] = bad
    with pytest.raises(LlmoptError, match="statistics hold NaN"):
        factored(h, 0.01)
