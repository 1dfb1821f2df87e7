"""What every grid, method and format must do: a new one is tested by being listed."""

from __future__ import annotations

import importlib
import itertools
from typing import Any

import pytest
import torch

from llmopt.formats.layout import layout_of
from llmopt.grids.base import GridOptions
from llmopt.linalg import InputMoments, InputStatistics
from llmopt.methods.quantize.settings import MethodSettings
from llmopt.specs import FORMATS, GRIDS, KINDS, METHODS, RUNTIMES
from llmopt.specs.base import load_class
from tests.methods.quantize.reference import make_problem, objective


def module(table: dict[str, Any], name: str) -> Any:
    return importlib.import_module(table[name].module)


def settings(method: str) -> MethodSettings:
    return load_class(METHODS[method].settings, MethodSettings)()


def options(grid: str, *, symmetric: bool = True, group_size: int = 32) -> GridOptions:
    return GridOptions(
        grid=grid, bits=GRIDS[grid].bits, group_size=group_size, symmetric=symmetric, min_zero=1
    )


@pytest.mark.parametrize("group_size", [16, 64, -1])
@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("grid", GRIDS)
def test_grid(grid: str, symmetric: bool, group_size: int) -> None:
    provider, wanted = (
        module(GRIDS, grid),
        options(grid, symmetric=symmetric, group_size=group_size),
    )
    weight, statistics = make_problem(24, 64)
    weight[3] = 0
    params = provider.fit(weight, wanted, statistics.diagonal)
    codes = provider.encode(weight, params)
    values = provider.decode(codes, params)
    assert codes.dtype == torch.uint8
    assert codes.shape == values.shape == weight.shape
    assert int(codes.max()) < 2**wanted.bits
    stored = params.scale.to(getattr(torch, provider.scale_dtype))
    assert torch.equal(stored.float(), params.scale)
    assert int(params.zero.min()) >= 1 or provider.levels is not None
    assert not values[3].any()
    assert torch.equal(provider.decode(provider.encode(values, params), params), values)
    coarse = provider.fit(weight, options("int2", symmetric=symmetric, group_size=group_size))
    coarse_values = provider.decode(provider.encode(weight, coarse), coarse)
    assert (values - weight).norm() <= (coarse_values - weight).norm() * 1.2


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize("method", METHODS)
def test_method_on_grid(method: str, grid: str, symmetric: bool) -> None:
    weight, statistics = make_problem(16, 64)
    wanted, provider = options(grid, symmetric=symmetric), module(GRIDS, grid)
    solve = module(METHODS, method).solve
    before = weight.clone(), statistics.hessian.clone()
    first = solve(weight, statistics, wanted, settings(method))
    second = solve(weight, statistics, wanted, settings(method))
    assert torch.equal(first.codes, second.codes)
    assert torch.equal(first.params.scale, second.params.scale)
    assert torch.equal(weight, before[0])
    assert torch.equal(statistics.hessian, before[1])
    params = provider.fit(weight, wanted, statistics.diagonal)
    nearest = provider.decode(provider.encode(weight, params), params)
    values = provider.decode(first.codes, first.params)
    lost = objective(weight, values, statistics.hessian).sum()
    assert lost <= objective(weight, nearest, statistics.hessian).sum() * 1.02


@pytest.mark.parametrize("method", METHODS)
def test_method_refuses_what_is_not_a_number(method: str) -> None:
    weight, statistics = make_problem(8, 64)
    weight[2, 7] = torch.inf
    with pytest.raises(Exception, match="NaN or infinite"):
        module(METHODS, method).solve(weight, statistics, options("int4"), settings(method))


@pytest.mark.parametrize("method", METHODS)
def test_inputs_that_are_always_zero_do_no_harm(method: str) -> None:
    weight, _ = make_problem(8, 64)
    statistics = InputStatistics.empty(64, InputMoments(hessian=True, mean_abs=True))
    inputs = torch.randn(100, 64, generator=torch.Generator().manual_seed(0))
    inputs[:, 5] = 0
    statistics.add(inputs)
    solved = module(METHODS, method).solve(weight, statistics, options("int4"), settings(method))
    values = module(GRIDS, "int4").decode(solved.codes, solved.params)
    assert bool(values.isfinite().all())


@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize("format_", FORMATS)
def test_format_keeps_codes_and_parameters(format_: str, grid: str) -> None:
    if grid not in FORMATS[format_].grids:
        return
    codec, provider = module(FORMATS, format_).Codec(FORMATS[format_].version), module(GRIDS, grid)
    weight, statistics = make_problem(32, 64)
    sizes = [size for size in FORMATS[format_].group_sizes or (32, -1) if 64 % size == 0]
    accepted = 0
    for symmetric, size in itertools.product((True, False), sizes):
        wanted = options(grid, symmetric=symmetric, group_size=size)
        solved = module(METHODS, "rtn").solve(weight, statistics, wanted, settings("rtn"))
        if codec.accepts(solved) is not None:
            continue
        accepted += 1
        back = codec.unpack(codec.pack(solved), layout_of(solved))
        assert torch.equal(back.codes, solved.codes)
        assert torch.equal(
            provider.decode(back.codes, back.params), provider.decode(solved.codes, solved.params)
        )
    assert accepted


def test_tables_name_things_that_exist() -> None:
    for name in GRIDS:
        assert {"fit", "encode", "decode", "fit_block"} <= set(dir(module(GRIDS, name)))
    for name in METHODS:
        assert callable(module(METHODS, name).solve)
        assert isinstance(settings(name), MethodSettings)
    models = {id_: spec for id_, spec in KINDS.items() if spec.holds == "model"}
    assert {id_ for id_, spec in KINDS.items() if spec.module} == models.keys()
    for name, spec in models.items():
        asked = {"recognises", "headers", "contents", "check"} | (
            {"model_folder"} if spec.files else set()
        )
        assert asked <= set(dir(module(KINDS, name)))
        assert spec.runtimes
        assert set(spec.runtimes) <= RUNTIMES.keys()
    for name in RUNTIMES:
        assert callable(module(RUNTIMES, name).load)
