"""AWQ's scale search: what it minimises, and when it leaves weights alone."""

from __future__ import annotations

import torch

from llmopt.grids import integer
from llmopt.grids.base import GridOptions
from llmopt.linalg import InputMoments, InputStatistics
from llmopt.methods.quantize import awq as rounding
from llmopt.methods.quantize import rtn
from llmopt.methods.quantize.settings import AwqSettings, RtnSettings
from llmopt.methods.transform.awq import Reader, search_scale
from tests.methods.quantize.reference import make_problem, objective

OPTIONS = GridOptions(grid="int4", bits=4, group_size=32, symmetric=False, scale_search="minmax")


def with_outliers(cols: int = 64) -> tuple[torch.Tensor, torch.Tensor]:
    """A weight, and inputs [tokens, cols] of which four channels are a hundred times larger."""
    draw = torch.Generator().manual_seed(1)
    x = torch.randn(400, cols, generator=draw)
    x[:, [3, 17, 40, 41]] *= 100
    return torch.randn(48, cols, generator=draw) * 0.05, x


def statistics_of(x: torch.Tensor) -> InputStatistics:
    statistics = InputStatistics.empty(x.shape[1], InputMoments(hessian=True, mean_abs=True))
    statistics.add(x)
    return statistics


def lost(w: torch.Tensor, x: torch.Tensor, scale: torch.Tensor) -> float:
    """The squared error of the outputs, by a forward pass in float64."""
    params = integer.fit(w * scale, OPTIONS)
    rounded = integer.decode(integer.encode(w * scale, params), params).double() / scale.double()
    return float(((x.double() @ (rounded - w.double()).T) ** 2).sum())


def test_a_scale_is_found_that_forward_passes_confirm() -> None:
    w, x = with_outliers()
    scale = search_scale([Reader(w, statistics_of(x), OPTIONS)])
    assert lost(w, x, scale) < 0.4 * lost(w, x, torch.ones(64))
    assert float(scale[[3, 17, 40, 41]].min()) > float(scale.median())


def test_readers_count_by_their_tokens() -> None:
    """A reader that saw next to nothing does not change what is best for the other."""
    w, x = with_outliers()
    other, few = with_outliers()[0].flip(0), torch.randn(1, 64) * 1e-3
    alone = search_scale([Reader(w, statistics_of(x), OPTIONS)])
    both = search_scale(
        [Reader(w, statistics_of(x), OPTIONS), Reader(other, statistics_of(few), OPTIONS)]
    )
    assert lost(w, x, both) < 1.2 * lost(w, x, alone)


def test_a_grid_that_loses_nothing_needs_no_scale() -> None:
    w = torch.randint(0, 16, (8, 64), generator=torch.Generator().manual_seed(0)).float()
    w[:, ::32], w[:, 1::32] = 15, 0
    reader = Reader(w, statistics_of(torch.randn(100, 64)), OPTIONS)
    assert torch.equal(search_scale([reader]), torch.ones(64))


def test_clipping_never_costs_more_than_the_searched_range() -> None:
    weight, statistics = make_problem(32, 128)
    for symmetric in (True, False):
        options = GridOptions(grid="int3", bits=3, group_size=32, symmetric=symmetric)
        blocks = torch.zeros_like(statistics.hessian)
        for i in range(0, 128, 32):  # what lies in other groups does not enter the choice
            part = slice(i, i + 32)
            blocks[part, part] = statistics.hessian[part, part]
        ours, theirs = (
            integer.decode(solved.codes, solved.params)
            for solved in (
                rounding.solve(weight, statistics, options, AwqSettings()),
                rtn.solve(weight, statistics, options, RtnSettings()),
            )
        )
        mine, reference = objective(weight, ours, blocks), objective(weight, theirs, blocks)
        assert (mine <= reference * (1 + 1e-5)).all()
        assert mine.sum() < 0.99 * reference.sum()
