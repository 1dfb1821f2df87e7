"""Hessians: sums, mirrors and permutations."""

from __future__ import annotations

import pytest
import torch

from llmopt import processor
from llmopt.linalg import hessian
from llmopt.linalg.hessian import (
    accumulate_hessian,
    fast_products,
    mirror_upper,
    permute_above,
    permute_below,
)
from llmopt.specs import walking
from tests.linalg.inputs import activations, hessian_of


@pytest.mark.parametrize("split", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_accumulation_is_the_mean_over_all_tokens(
    dtype: torch.dtype, split: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if split:
        monkeypatch.setattr(walking, "SPLIT_COLUMNS", 10)
        monkeypatch.setattr(walking, "SPLIT_ROWS", (128, 8))
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
    monkeypatch.setattr(hessian, "_MIRROR_BLOCK", 8)
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


@pytest.mark.parametrize("cols", [1, 7, 24])
def test_permutations_fill_one_half_from_the_other(
    cols: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hessian, "PERMUTED_ROWS", 5)
    generator = torch.Generator().manual_seed(0)
    matrix, order = torch.randn(cols, cols, generator=generator), torch.randperm(cols)
    symmetric = matrix.triu() + matrix.triu(1).T
    permuted = matrix.clone()
    permute_below(permuted, order)
    assert torch.equal(permuted.triu(), matrix.triu())
    assert torch.equal(permuted.tril(-1), symmetric[order][:, order].tril(-1))
    permuted.diagonal().copy_(symmetric.diagonal()[order])
    permuted += 9 * torch.ones(cols, cols).triu(1)
    permute_above(permuted, torch.argsort(order))
    assert torch.equal(permuted.triu(1), matrix.triu(1))
