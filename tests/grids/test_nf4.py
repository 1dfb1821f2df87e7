"""NF4 against bitsandbytes' own rule, written out: thresholds in the middle, absmax scales."""

from __future__ import annotations

import torch

from llmopt.grids import nf4
from llmopt.grids.base import GridOptions

OPTIONS = GridOptions(grid="nf4", bits=4, group_size=64, scale_search="minmax")


def weight(rows: int = 8, cols: int = 128) -> torch.Tensor:
    return torch.randn(rows, cols, generator=torch.Generator().manual_seed(0)) * 0.02


def test_levels_are_those_of_qlora() -> None:
    assert len(nf4.levels) == 16
    assert (float(nf4.levels[0]), float(nf4.levels[7]), float(nf4.levels[15])) == (-1.0, 0.0, 1.0)
    # a quantile of the normal distribution each, normalized: Dettmers et al. 2023, appendix E
    normal, offset = torch.distributions.Normal(0.0, 1.0), 0.9677083
    positive = normal.icdf(torch.linspace(offset, 0.5, 9)[:-1])
    negative = -normal.icdf(torch.linspace(offset, 0.5, 8)[:-1])
    expected = torch.cat([negative, torch.zeros(1), positive.flip(0)]) / positive.max()
    assert torch.allclose(nf4.levels, expected, atol=1e-6)


def test_scales_are_the_extremes_and_codes_the_nearest() -> None:
    w = weight()
    params = nf4.fit(w, OPTIONS)
    blocks = w.view(8, 2, 64)
    assert torch.equal(params.scale, blocks.abs().amax(-1))
    values = (blocks * params.scale.reciprocal().unsqueeze(-1)).unsqueeze(-1)
    best = (values - nf4.levels).abs().argmin(-1).view(8, 128)
    assert torch.equal(nf4.encode(w, params).long(), best)
    decoded = nf4.decode(nf4.encode(w, params), params)
    assert torch.equal(
        decoded, (nf4.levels[best].view(8, 2, 64) * params.scale[..., None]).view_as(w)
    )


def test_a_block_of_zeros_stays_zeros() -> None:
    w = weight()
    w[2, :64] = 0
    params = nf4.fit(w, OPTIONS)
    assert not nf4.decode(nf4.encode(w, params), params)[2, :64].any()
