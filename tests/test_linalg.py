"""Hessians and their factors against float64 and torch's own routines."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from llmopt import linalg, processor
from llmopt.errors import LlmoptError
from llmopt.linalg import accumulate_hessian, damped_factor, fast_products, mirror_upper


def activations(tokens: int, cols: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(cols, cols, generator=generator) / cols**0.5 + torch.eye(cols)
    return torch.randn(tokens, cols, generator=generator) @ mixing


def hessian_of(x: Tensor) -> Tensor:
    return x.T @ x / x.shape[0]


@pytest.mark.parametrize("permuted", [False, True])
def test_factor_multiplies_back_and_is_the_inverse_of_gptqs(permuted: bool) -> None:
    h = hessian_of(activations(500, 48))
    order = torch.randperm(48, generator=torch.Generator().manual_seed(1)) if permuted else None
    factor = damped_factor(h, 0.01, order=order)
    expected = h.double() if order is None else h.double()[order][:, order]
    expected = expected + 0.01 * h.double().diagonal().mean() * torch.eye(48)
    upper = factor.upper.double()
    assert torch.equal(upper, upper.triu())
    assert (upper.diagonal() > 0).all()
    assert torch.allclose(upper @ upper.T, expected, rtol=1e-4, atol=1e-5)
    assert torch.allclose(factor.damped.double(), expected, rtol=1e-6)
    gptq = torch.linalg.cholesky(torch.linalg.inv(expected), upper=True)
    assert torch.allclose(torch.linalg.inv(upper), gptq, rtol=1e-3, atol=1e-4)
    assert factor.damping == 0.01


def test_hessian_is_left_alone() -> None:
    h = hessian_of(activations(100, 8))
    before = h.clone()
    damped_factor(h, 0.5)
    assert torch.equal(h, before)


def test_dead_columns_stand_alone_and_do_not_count_in_the_mean() -> None:
    x = activations(400, 24)
    alive = damped_factor(hessian_of(x), 0.02)
    padded = torch.zeros(400, 26)
    padded[:, :5], padded[:, 6:25] = x[:, :5], x[:, 5:]
    factor = damped_factor(hessian_of(padded), 0.02)
    assert factor.dead.nonzero().flatten().tolist() == [5, 25]
    keep = ~factor.dead
    assert torch.allclose(factor.upper[keep][:, keep], alive.upper, atol=1e-5)
    assert factor.upper[5].count_nonzero() == factor.upper[:, 5].count_nonzero() == 1


def test_all_dead() -> None:
    factor = damped_factor(torch.zeros(4, 4), 0.01)
    assert factor.dead.all()
    assert torch.allclose(factor.upper, torch.eye(4) * 0.1)


def test_float64_saves_what_float32_cannot() -> None:
    # Eigenvalues 1 and 1e-8: positive definite, but not to float32's Cholesky.
    h = torch.ones(2, 2)
    h[0, 0] = 1 + 2.0**-23
    stretched = torch.block_diag(*[h] * 8)
    assert damped_factor(stretched, 0.0).damping <= 0.01


def test_damping_grows_until_it_is_enough() -> None:
    h = torch.eye(6)
    h[0, 1] = h[1, 0] = 1.038  # smallest eigenvalue -0.038
    factor = damped_factor(h, 0.005, increment=0.01)
    assert factor.damping == pytest.approx(0.045)
    assert torch.allclose(factor.upper @ factor.upper.T, h + 0.045 * torch.eye(6), atol=1e-6)


def test_hopeless_hessian_is_an_error() -> None:
    h = torch.eye(3)
    h[0, 1] = h[1, 0] = 50
    with pytest.raises(LlmoptError, match=r"not positive definite even with damping 0\.05"):
        damped_factor(h, 0.01, attempts=5)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_overflowed_statistics_are_named(bad: float) -> None:
    h = torch.eye(3)
    h[1, 2] = bad
    with pytest.raises(LlmoptError, match="statistics hold NaN"):
        damped_factor(h)


@pytest.mark.parametrize("split", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_accumulation_is_the_mean_over_all_tokens(
    dtype: torch.dtype, split: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if split:
        monkeypatch.setattr(linalg, "_SPLIT_COLUMNS", 10)
        monkeypatch.setattr(linalg, "_SPLIT_BLOCK", 8)
    x = activations(300, 20).to(dtype)
    h, count = torch.zeros(20, 20), 0
    for part in (x[:7], x[7:7], x[7:200], x[200:].view(4, 25, 20)):
        count = accumulate_hessian(h, part, count)
    assert count == 300
    mirror_upper(h)
    exact = hessian_of(x.double())
    assert float((h - exact).norm() / exact.norm()) < 1e-3
    assert torch.equal(h, h.T)


@pytest.mark.parametrize("cols", [1, 7, 16, 24])
def test_mirroring_keeps_the_upper_half_and_copies_it_below(
    cols: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(linalg, "_MIRROR_BLOCK", 8)
    matrix = torch.randn(cols, cols, generator=torch.Generator().manual_seed(0))
    upper = matrix.triu()
    mirror_upper(matrix)
    assert torch.equal(matrix.triu(), upper)
    assert torch.equal(matrix, matrix.T)


def test_fast_products_puts_the_setting_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processor, "fast_bfloat16", lambda: True)
    settings = torch.backends.mkldnn.matmul
    before = settings.fp32_precision

    def fail_inside() -> None:
        with fast_products(torch.device("cpu")):
            assert settings.fp32_precision == "bf16"
            raise KeyError

    with pytest.raises(KeyError):
        fail_inside()
    assert settings.fp32_precision == before


def test_fast_products_changes_nothing_where_they_are_slow(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processor, "fast_bfloat16", lambda: False)
    before = torch.backends.mkldnn.matmul.fp32_precision
    with fast_products(torch.device("cpu")):
        assert torch.backends.mkldnn.matmul.fp32_precision == before
