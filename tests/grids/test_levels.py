"""Grids of tabled levels, through FP8: torch's own cast is the reference."""

from __future__ import annotations

import torch

from llmopt.grids import fp8
from llmopt.grids.base import AffineParams, GridOptions
from llmopt.grids.levels import index, nearest, spacing

OPTIONS = GridOptions(grid="fp8", bits=8, group_size=-1, scale_search="minmax")


def weight(rows: int = 16, cols: int = 128) -> torch.Tensor:
    return torch.randn(rows, cols, generator=torch.Generator().manual_seed(0)) * 0.02


def test_levels_are_the_finite_values_of_e4m3() -> None:
    assert len(fp8.levels) == 253
    assert float(fp8.levels.max()) == 448 == -float(fp8.levels.min())
    assert torch.equal(fp8.levels.to(torch.float8_e4m3fn).float(), fp8.levels)


def test_rounding_is_torchs_cast_but_for_ties() -> None:
    w = weight()
    params = fp8.fit(w, OPTIONS)
    assert torch.equal(params.scale, (w.abs().amax(1, keepdim=True) / 448))
    cast = (w / params.scale).to(torch.float8_e4m3fn).float() * params.scale
    ours = fp8.decode(fp8.encode(w, params), params)
    assert float((ours != cast).float().mean()) < 1e-3
    assert torch.equal((ours - w).abs() <= (cast - w).abs() + 1e-9, torch.ones_like(w).bool())


def test_nearest_is_nearest_by_exhaustion() -> None:
    levels = torch.tensor([-3.0, -1.0, 0.0, 0.5, 4.0])
    x = torch.linspace(-5, 6, 221)
    best = levels[(x[:, None] - levels).abs().argmin(1)]
    ours = nearest(x, levels)
    assert torch.equal((x - ours).abs(), (x - best).abs())
    assert index(torch.tensor([9.0]), levels).tolist() == [4]
    assert spacing(levels).tolist() == [2.0, 1.5, 0.75, 2.0, 3.5]


def test_a_search_never_loses_to_the_extremes() -> None:
    from dataclasses import replace

    w = weight()
    for search in ("mse", "importance"):
        found = fp8.fit(w, replace(OPTIONS, scale_search=search), torch.ones(128))
        lost, plain = (
            (fp8.decode(fp8.encode(w, p), p) - w).square().sum()
            for p in (found, fp8.fit(w, OPTIONS))
        )
        assert lost <= plain * 1.0001


def test_groups_and_a_group_index() -> None:
    w = weight(4, 8)
    order = torch.tensor([1, 0, 1, 0, 1, 0, 1, 0], dtype=torch.int32)
    scale = torch.tensor([[0.001, 0.0001]]).repeat(4, 1)
    params = AffineParams(
        bits=8, group_size=4, symmetric=True, scale=scale,
        zero=torch.zeros(4, 2, dtype=torch.int32), group_index=order, scale_dtype="float32",
    )  # fmt: skip
    decoded = fp8.decode(fp8.encode(w, params), params)
    each = scale[:, order.long()]
    assert torch.equal(decoded, nearest(w / each, fp8.levels) * each)
