"""That compiled loops do what tensor operations do, which other devices use."""

from __future__ import annotations

import numba
import numba.core.caching
import pytest
import torch
from torch import Tensor

from llmopt.grids import affine, kernels, search
from llmopt.grids.base import GridOptions
from llmopt.grids.nf4 import levels as nf4_levels


def _columns(n: int, rows: int, *, shared: bool) -> dict[str, Tensor]:
    torch.manual_seed(n + rows)
    own = 1 if shared else n
    target = torch.randn(n, rows)
    return {
        "target": target,
        "current": target + 0.1 * torch.randn(n, rows),
        "codes": torch.empty(n, rows),
        "scale": 0.2 + 0.1 * torch.rand(own, rows),
        "low": torch.full((own, rows), -4.0),
        "high": torch.full((own, rows), 3.0),
        "coupling": 0.1 * torch.randn(n, n),
    }


@pytest.mark.parametrize("levels", [None, nf4_levels * 4, torch.linspace(-4, 4, 256)])
@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize(("n", "rows"), [(1, 1), (4, 128), (7, 130), (16, 300)])
def test_feedback_takes_the_same_codes(
    n: int, rows: int, shared: bool, levels: Tensor | None
) -> None:
    given = _columns(n, rows, shared=shared)
    compiled = {name: x.clone() for name, x in given.items()}
    affine._settle(*given.values(), levels)
    affine._settle_on_cpu(*compiled.values(), levels)
    assert torch.equal(given["codes"], compiled["codes"])
    for name in ("target", "current"):
        torch.testing.assert_close(given[name], compiled[name], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("n", [64, 65, 200])
def test_halves_are_joined_by_products(n: int) -> None:
    given = _columns(n, 40, shared=True)
    whole = {name: x.clone() for name, x in given.items()}
    affine.round_with_feedback(*given.values())
    affine._settle_on_cpu(*whole.values(), None)
    assert (given["codes"] == whole["codes"]).float().mean() > 0.99


def test_they_are_compiled_where_nothing_can_be_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(numba.core.caching.CacheImpl, "_locator_classes", [])

    def double(x: kernels.Floats) -> None:
        x *= 2

    made = kernels._compiled(numba.float32[::1])(double)
    x = torch.ones(3)
    made(x.numpy())
    assert x.tolist() == [2, 2, 2]


def test_float16_is_rounded_to_as_torch_does() -> None:
    torch.manual_seed(0)
    edges = [0.0, -0.0, 1e-9, 65504, 65519, 65520, 1e30, 2.0**-14, 2.0**-24, 2.0**-25, 3 * 2.0**-25]
    scales = torch.cat([
        torch.tensor([*edges, *(-edge for edge in edges)]),
        torch.randn(1 << 16) * 10 ** (16 * torch.rand(1 << 16) - 10),
        torch.arange(1, 1 << 15, dtype=torch.int16).view(torch.float16).float().nan_to_num(),
    ])  # fmt: skip
    rounded = scales.clone()
    numba.njit(_rounded)(rounded.numpy())
    assert torch.equal(rounded, affine.round_scale(scales))


def _rounded(scale: object) -> None:
    kernels._to_float16(scale)


@pytest.mark.parametrize("weighed", [True, False])
@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_a_search_finds_scales_as_good(bits: int, symmetric: bool, weighed: bool) -> None:
    torch.manual_seed(bits)
    x = 0.02 * torch.randn(32, 3, 150)
    x[:, 1, 7] = 0
    weights = torch.rand(32, 3, 1) + 0.1 if weighed else None
    options = GridOptions(grid=f"int{bits}", bits=bits, symmetric=symmetric)
    ranges = (search._symmetric_ranges if symmetric else search._asymmetric_ranges)(x, options)
    arguments = (x, weights, 2**bits - 1, list(ranges))
    expected, found = search._search(*arguments), search._search_on_cpu(*arguments)
    # sums in another order may prefer another of two that are as good
    lost = [_lost(x, weights, *each, 2**bits - 1) for each in (expected, found)]
    torch.testing.assert_close(lost[0], lost[1], rtol=1e-3, atol=0)


def _lost(x: Tensor, weights: Tensor | None, scale: Tensor, zero: Tensor, top: int) -> Tensor:
    codes = (x / scale).round() + zero
    error = (codes.clamp(0, top) - zero) * scale - x
    return (error.square() * (1.0 if weights is None else weights)).sum(0).sum()
