"""The integer grid: its formulas, its edges, and what its searches promise."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from llmopt.errors import RequestError
from llmopt.grids import integer
from llmopt.grids.affine import round_scale
from llmopt.grids.base import GridOptions

BITS = (2, 3, 4, 8)


def options(bits: int = 4, **changes: object) -> GridOptions:
    base = GridOptions(grid=f"int{bits}", bits=bits, group_size=16, scale_search="minmax")
    return replace(base, **changes)


def gaussian(rows: int, cols: int, seed: int = 0) -> Tensor:
    return torch.randn(rows, cols, generator=torch.Generator().manual_seed(seed))


def round_trip(w: Tensor, asked: GridOptions, importance: Tensor | None = None) -> Tensor:
    params = integer.fit(w, asked, importance)
    return integer.decode(integer.encode(w, params), params)


def loss(w: Tensor, asked: GridOptions, importance: Tensor | None = None) -> float:
    error = (w - round_trip(w, asked, importance)).square()
    return float((error if importance is None else error * importance).sum())


@pytest.mark.parametrize("bits", BITS)
def test_symmetric_minmax_is_the_peers_formula(bits: int) -> None:
    w = gaussian(3, 48)
    params = integer.fit(w, options(bits))
    for r in range(3):
        for g in range(3):
            part = w[r, 16 * g : 16 * g + 16]
            expected = (part.abs().max() * (2 / (2**bits - 1))).half().float()
            assert params.scale[r, g] == expected
            codes = torch.clamp(torch.round(part / expected) + 2 ** (bits - 1), 0, 2**bits - 1)
            assert torch.equal(integer.encode(w, params)[r, 16 * g : 16 * g + 16], codes.byte())
    assert (params.zero == 2 ** (bits - 1)).all()


@pytest.mark.parametrize("bits", BITS)
def test_asymmetric_minmax_spans_the_range_and_zero(bits: int) -> None:
    w = gaussian(4, 32) + torch.tensor([0.0, 5.0, -5.0, 0.1]).unsqueeze(1)
    params = integer.fit(w, options(bits, symmetric=False))
    blocks = w.view(4, 2, 16)
    low, high = blocks.amin(2).clamp(max=0), blocks.amax(2).clamp(min=0)
    scale = ((high - low) / (2**bits - 1)).half().float()
    assert torch.equal(params.scale, scale)
    assert torch.equal(params.zero, (-low / scale).round().int().clamp(0, 2**bits - 1))
    assert params.zero[1].eq(0).all()  # all positive: the range starts at 0


@pytest.mark.parametrize("bits", BITS)
def test_codes_are_the_nearest_values(bits: int) -> None:
    w = gaussian(2, 32)
    params = integer.fit(w, options(bits, scale_search="mse"))
    nearest = torch.full_like(w, torch.inf)
    for code in range(2**bits):
        values = integer.decode(torch.full(w.shape, code, dtype=torch.uint8), params)
        nearest = torch.minimum(nearest, (values - w).abs())
    error = (integer.decode(integer.encode(w, params), params) - w).abs()
    assert torch.allclose(error, nearest, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("bits", [2, 3, 4])
def test_search_beats_minmax_and_weights_matter(bits: int, symmetric: bool) -> None:
    w = gaussian(16, 64) * torch.linspace(0.5, 2, 64)
    importance = torch.linspace(3, 0.01, 64) ** 2
    asked = options(bits, symmetric=symmetric)
    plain, mse = loss(w, asked), loss(w, replace(asked, scale_search="mse"))
    assert mse < plain
    weighted = replace(asked, scale_search="importance")
    only_mse = (w - round_trip(w, replace(asked, scale_search="mse"))).square() * importance
    assert loss(w, weighted, importance) < float(only_mse.sum())


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("bits", [2, 3, 4])
def test_search_is_close_to_an_exhaustive_one(bits: int, symmetric: bool) -> None:
    w = gaussian(16, 32, seed=3)
    asked = options(bits, symmetric=symmetric, group_size=32, signed_scales=False)
    found = loss(w, replace(asked, scale_search="mse"))
    span = w.abs().amax(1) if symmetric else w.amax(1) - w.amin(1)
    steps = 2 ** (bits - 1) if symmetric else 2**bits - 1
    zeros = [2 ** (bits - 1)] if symmetric else range(2**bits)
    best = torch.full((16,), torch.inf)
    for fraction in torch.linspace(0.45, 1.1, 66):
        scale = (span * fraction / steps).unsqueeze(1)
        for zero in zeros:
            codes = (w / scale).round().clamp(-zero, 2**bits - 1 - zero)
            best = torch.minimum(best, (w - codes * scale).square().sum(1))
    assert found < (1.06 if bits == 4 else 1.015) * float(best.sum())


def test_signed_scales_give_the_extreme_the_extra_code() -> None:
    w = torch.tensor([[4.0, 1.0, -2.0, 3.0] * 4, [-4.0, -1.0, 2.0, -3.0] * 4])
    asked = options(3, scale_search="mse")
    params = integer.fit(w, asked)
    assert params.scale[0, 0] == -1.0
    assert params.scale[1, 0] == 1.0
    assert torch.equal(round_trip(w, asked), w)
    unsigned = replace(asked, signed_scales=False)
    assert integer.fit(w, unsigned).scale.gt(0).all()
    assert loss(w, unsigned) > 0


@pytest.mark.parametrize("search", ["minmax", "mse", "importance"])
def test_minimum_zero_is_respected(search: str) -> None:
    w = gaussian(8, 32).abs()
    importance = torch.ones(32)
    asked = options(4, symmetric=False, scale_search=search)
    assert integer.fit(w, asked, importance).zero.eq(0).any()
    raised = integer.fit(w, replace(asked, min_zero=1), importance)
    assert raised.zero.min() == 1
    assert loss(w, replace(asked, min_zero=1)) < 2 * loss(w, asked)


@pytest.mark.parametrize("search", ["minmax", "mse", "importance"])
@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("bits", BITS)
def test_zero_and_constant_groups(bits: int, symmetric: bool, search: str) -> None:
    w = torch.cat([torch.zeros(2, 16), torch.full((2, 16), 0.75), torch.full((2, 16), -3.0)], 1)
    asked = options(bits, symmetric=symmetric, scale_search=search)
    values = round_trip(w, asked, torch.ones(48))
    assert torch.equal(values[:, :16], w[:, :16])
    step = 2 / (2**bits - 1)
    assert ((values - w).abs() <= w.abs() * step).all()


@pytest.mark.parametrize("search", ["mse", "importance"])
def test_importance_may_hold_zeros(search: str) -> None:
    w = gaussian(4, 48)
    importance = torch.cat(
        [torch.zeros(16), torch.ones(8), torch.zeros(8), torch.full((16,), 1e-30)]
    )
    params = integer.fit(w, options(4, scale_search=search), importance)
    assert torch.isfinite(params.scale).all()
    assert (params.scale != 0).all()
    unweighted = integer.fit(w, options(4, scale_search="mse"))
    assert torch.equal(params.scale[:, 0], unweighted.scale[:, 0])  # a group never seen


@pytest.mark.parametrize("group_size", [16, 32, 64, -1])
def test_fit_and_fit_block_agree(group_size: int) -> None:
    w, importance = gaussian(5, 64), torch.rand(64, generator=torch.Generator().manual_seed(1))
    asked = options(3, group_size=group_size, symmetric=False, scale_search="importance")
    params = integer.fit(w, asked, importance)
    size = 64 if group_size == -1 else group_size
    assert params.scale.shape == params.zero.shape == (5, 64 // size)
    for g in range(64 // size):
        part = slice(g * size, (g + 1) * size)
        scale, zero = integer.fit_block(w[:, part], asked, importance[part])
        assert torch.allclose(scale, params.scale[:, g], rtol=1e-3)
        assert torch.equal(zero, params.zero[:, g])


def test_chunks_do_not_show(monkeypatch: pytest.MonkeyPatch) -> None:
    w = gaussian(40, 64)
    asked = options(4, scale_search="mse")
    whole = integer.fit(w, asked)
    block = integer.fit_block(w[:, :16], asked)
    monkeypatch.setattr(integer, "_CHUNK", 7 * 64)
    assert torch.equal(integer.fit(w, asked).scale, whole.scale)
    assert torch.equal(integer.fit_block(w[:, :16], asked)[0], block[0])


def test_group_size_must_divide() -> None:
    with pytest.raises(RequestError, match="group size 32 does not divide 48 input channels"):
        integer.fit(gaussian(2, 48), options(4, group_size=32))


def test_group_index_permutes_groups() -> None:
    w = gaussian(3, 32)
    params = integer.fit(w, options(4))
    index = torch.arange(32, dtype=torch.int32) // 16
    shuffle = torch.randperm(32, generator=torch.Generator().manual_seed(0))
    shuffled = replace(params, group_index=index[shuffle])
    codes = integer.encode(w[:, shuffle], shuffled)
    assert torch.equal(codes, integer.encode(w, params)[:, shuffle])
    assert torch.equal(
        integer.decode(codes, shuffled),
        integer.decode(integer.encode(w, params), params)[:, shuffle],
    )


def test_round_scale_is_finite_and_not_zero() -> None:
    scale = torch.tensor([0.0, 1e-12, -1e-12, 1e9, -1e9, 0.1, -0.1, 3e-6])
    rounded = round_scale(scale)
    assert rounded[0] == 1
    assert rounded[1] == 2.0**-24
    assert rounded[2] == -(2.0**-24)
    assert rounded[3] == 65504
    assert rounded[4] == -65504
    assert torch.equal(rounded, rounded.half().float())
    assert torch.isfinite(rounded).all()


@settings(max_examples=25, deadline=None)
@given(
    bits=st.sampled_from(BITS),
    symmetric=st.booleans(),
    signed=st.booleans(),
    search=st.sampled_from(["minmax", "mse", "importance"]),
    magnitude=st.integers(-12, 6),
    seed=st.integers(0, 999),
    outlier=st.sampled_from([0.0, 1.0, -1e4]),
)
def test_any_group_keeps_the_contract(
    bits: int, symmetric: bool, signed: bool, search: str, magnitude: int, seed: int, outlier: float
) -> None:
    w = gaussian(3, 32, seed) * 10.0**magnitude
    w[0, 0] *= outlier
    asked = options(
        bits, symmetric=symmetric, signed_scales=signed, scale_search=search, min_zero=1
    )
    params = integer.fit(w, asked, torch.rand(32, generator=torch.Generator().manual_seed(seed)))
    assert torch.equal(params.scale, params.scale.half().float())
    assert torch.isfinite(params.scale).all()
    assert (params.scale != 0).all()
    if symmetric:
        assert (params.zero == 2 ** (bits - 1)).all()
    assert params.zero.min() >= 1
    assert params.zero.max() < 2**bits
    codes = integer.encode(w, params)
    assert int(codes.max()) < 2**bits
    values = integer.decode(codes, params)
    assert torch.equal(integer.encode(values, params), codes)  # decoding is exact
    # No value is further from its weight than the weight is from 0.
    assert ((values - w).abs() <= w.abs() * (1 + 1e-6) + params.scale.abs().amax() * 2e-3).all()
