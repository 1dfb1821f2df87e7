"""Products with parameters are seen, whatever they are written as."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from llmopt.blockwalk.products import Product, Products

W = nn.Parameter(torch.randn(6, 4), requires_grad=False)
EXPERTS = nn.Parameter(torch.randn(3, 6, 4), requires_grad=False)
X, Y = torch.randn(5, 4), torch.randn(5, 6)
BATCH = torch.randn(3, 5, 4)


def seen(call: Callable[[], Tensor]) -> list[Product]:
    found: list[Product] = []
    with Products({"w": W, "experts": EXPERTS}, found.append):
        call()
    return found


@pytest.mark.parametrize(
    ("call", "index", "transposed", "x"),
    [
        (lambda: nn.functional.linear(X, W), None, False, X),
        (lambda: X @ W.T, None, False, X),
        (lambda: Y @ W, None, True, Y),
        (lambda: torch.addmm(torch.zeros(4), Y, W), None, True, Y),
        (lambda: nn.functional.linear(X, EXPERTS[1]), 1, False, X),
        (lambda: nn.functional.linear(X, EXPERTS[torch.tensor(2)]), 2, False, X),
        (lambda: torch.matmul(Y, EXPERTS[2]), 2, True, Y),
    ],
)
def test_a_product_is_seen(
    call: Callable[[], Tensor], index: int | None, transposed: bool, x: Tensor
) -> None:
    (product,) = seen(call)
    assert (product.path, product.index) == ("w" if index is None else "experts", index)
    assert product.transposed == transposed
    assert not product.turned
    assert product.x is x


def test_all_experts_at_once() -> None:
    found = seen(lambda: torch.bmm(BATCH, EXPERTS.mT))
    assert [product.index for product in found] == [0, 1, 2]
    assert all(torch.equal(p.x, BATCH[i]) and not p.transposed for i, p in enumerate(found))


def test_the_other_way_round_is_told() -> None:
    (product,) = seen(lambda: W @ X.T)
    assert product.turned
    assert torch.equal(product.x, X)


@pytest.mark.parametrize(
    "call", [lambda: X @ torch.randn(4, 6), lambda: X @ W[:3].T, lambda: W * 2, lambda: X @ X.T]
)
def test_what_is_no_product_with_a_parameter_is_not(call: Callable[[], Tensor]) -> None:
    assert not seen(call)
