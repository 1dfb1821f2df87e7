"""Round to nearest is the grid's fit and encode, weighted where that was asked for."""

from __future__ import annotations

import pytest
import torch

from llmopt.errors import LlmoptError
from llmopt.grids import integer
from llmopt.grids.base import GridOptions
from llmopt.methods.quantize import rtn
from llmopt.methods.quantize.settings import RtnSettings
from tests.methods.quantize.reference import make_problem, objective, values_of


def options(search: str, bits: int = 3) -> GridOptions:
    return GridOptions(grid=f"int{bits}", bits=bits, group_size=32, scale_search=search)  # type: ignore[arg-type]


@pytest.mark.parametrize("search", ["minmax", "mse"])
def test_needs_no_statistics(search: str) -> None:
    weight, statistics = make_problem(6, 64)
    solved = rtn.solve(weight, None, options(search), RtnSettings())
    params = integer.fit(weight, options(search))
    assert torch.equal(solved.codes, integer.encode(weight, params))
    assert torch.equal(solved.params.scale, params.scale)
    with_statistics = rtn.solve(weight, statistics, options(search), RtnSettings())
    assert torch.equal(solved.codes, with_statistics.codes)


def test_importance_weighs_the_search() -> None:
    weight, statistics = make_problem(32, 64)
    diagonal = torch.diag(statistics.diagonal)
    losses = {
        search: objective(
            weight,
            values_of(rtn.solve(weight, statistics, options(search), RtnSettings())),
            diagonal,
        ).sum()
        for search in ("minmax", "mse", "importance")
    }
    assert losses["importance"] < losses["mse"] < losses["minmax"]


def test_importance_without_statistics_is_an_error() -> None:
    weight, _ = make_problem(4, 64)
    with pytest.raises(LlmoptError, match="needs calibration statistics"):
        rtn.solve(weight, None, options("importance"), RtnSettings())


def test_unknown_grid() -> None:
    weight, _ = make_problem(4, 64)
    asked = GridOptions(grid="int5", bits=5, group_size=32, scale_search="mse")
    with pytest.raises(LlmoptError, match="unknown grid 'int5'"):
        rtn.solve(weight, None, asked, RtnSettings())
