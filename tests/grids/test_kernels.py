"""That compiled loops do what tensor operations do, which other devices use."""

from __future__ import annotations

from copy import deepcopy

import numba
import numba.core.caching
import pytest
import torch
from torch import Tensor

from llmopt.grids import affine, kernels, search
from llmopt.grids.affine import Columns
from llmopt.grids.base import GridOptions
from llmopt.grids.nf4 import levels as nf4_levels


def _columns(n: int, rows: int, *, shared: bool) -> tuple[Columns, Tensor]:
    torch.manual_seed(n + rows)
    own = 1 if shared else n
    target = torch.randn(n, rows)
    columns = Columns(
        target=target,
        current=target + 0.1 * torch.randn(n, rows),
        codes=torch.empty(n, rows),
        scale=0.2 + 0.1 * torch.rand(own, rows),
        low=torch.full((own, rows), -4.0),
        high=torch.full((own, rows), 3.0),
    )
    return columns, 0.1 * torch.randn(n, n)


@pytest.mark.parametrize("levels", [None, nf4_levels * 4, torch.linspace(-4, 4, 256)])
@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize(("n", "rows"), [(1, 1), (4, 128), (7, 130), (16, 300)])
def test_feedback_takes_the_same_codes(
    n: int, rows: int, shared: bool, levels: Tensor | None
) -> None:
    given, coupling = _columns(n, rows, shared=shared)
    compiled = deepcopy(given)
    affine._settle(given, coupling, levels)
    affine._settle_on_cpu(compiled, coupling, levels)
    assert torch.equal(given.codes, compiled.codes)
    torch.testing.assert_close(given.target, compiled.target, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(given.current, compiled.current, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("n", [64, 65, 200])
def test_halves_are_joined_by_products(n: int) -> None:
    given, coupling = _columns(n, 40, shared=True)
    whole = deepcopy(given)
    affine.round_with_feedback(given, coupling)
    affine._settle_on_cpu(whole, coupling, None)
    assert (given.codes == whole.codes).float().mean() > 0.99


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
def test_a_search_finds_what_float64_would(bits: int, symmetric: bool, weighed: bool) -> None:
    torch.manual_seed(bits)
    x = 0.02 * torch.randn(32, 3, 150)
    x[:, 1, 7] = 0
    weights = torch.rand(32, 3, 1) + 0.1 if weighed else None
    options = GridOptions(grid=f"int{bits}", bits=bits, symmetric=symmetric)
    ranges = list(
        (search._symmetric_ranges if symmetric else search._asymmetric_ranges)(x, options)
    )
    found = search._search_on_cpu(x, weights, 2**bits - 1, ranges)
    exactly = [(scale.double(), zero.double()) for scale, zero in ranges]
    twice = None if weights is None else weights.double()
    expected = search._search(x.double(), twice, 2**bits - 1, exactly)
    assert all(map(torch.equal, found, (each.float() for each in expected)))
    others = search._search(x, weights, 2**bits - 1, ranges)
    assert all(each.dtype == torch.float32 for each in (*found, *others))
    lost = [_lost(x, weights, *each, 2**bits - 1) for each in (found, others)]
    torch.testing.assert_close(lost[0], lost[1], rtol=1e-3, atol=0)


def _lost(x: Tensor, weights: Tensor | None, scale: Tensor, zero: Tensor, top: int) -> Tensor:
    codes = (x / scale).round() + zero
    error = (codes.clamp(0, top) - zero) * scale - x
    return (error.square() * (1.0 if weights is None else weights)).sum(0).sum()
