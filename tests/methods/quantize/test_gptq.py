"""GPTQ against a float64 loop, and what its orders, groups and refinement promise."""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest
import torch

from llmopt.errors import LlmoptError, RequestError
from llmopt.grids import integer
from llmopt.grids.base import GridOptions, ScaleSearch
from llmopt.linalg import InputMoments, InputStatistics
from llmopt.methods.quantize import gptq, rtn, sweeps
from llmopt.methods.quantize.gptq import column_order
from llmopt.methods.quantize.settings import ActOrder, GptqSettings
from llmopt.specs import walking
from tests.methods.quantize.reference import (
    damped,
    make_problem,
    naive_gptq,
    objective,
    values_of,
)

ORDERS: tuple[ActOrder, ...] = ("none", "group", "full")


def options(bits: int = 4, group_size: int = 16, **changes: object) -> GridOptions:
    base = GridOptions(grid=f"int{bits}", bits=bits, group_size=group_size)
    return replace(base, **changes)


PLAIN = GptqSettings(refine=0)


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_the_pass_is_gptq(bits: int, symmetric: bool, order: ActOrder) -> None:
    weight, statistics = make_problem(40, 96)
    asked = options(bits, 32, symmetric=symmetric, scale_search="minmax")
    solved = values_of(
        gptq.solve(weight, statistics, asked, PLAIN.model_copy(update={"act_order": order}))
    )
    columns = column_order(statistics.diagonal, 32, order)
    expected = naive_gptq(weight, statistics.hessian, asked, 0.01, columns)
    same = torch.isclose(solved.double(), expected, rtol=1e-6, atol=1e-9)
    # A tie that float32 breaks differently moves the rest of its row: whole rows are compared.
    assert same.all(1).float().mean() > (0.9 if bits < 8 else 0.5)
    assert same.float().mean() > 0.97
    h = damped(statistics.hessian, 0.01)
    mine, reference = objective(weight, solved, h).sum(), objective(weight, expected, h).sum()
    assert float(mine / reference) == pytest.approx(1, abs=1e-3 if bits < 8 else 1e-2)


@pytest.mark.parametrize("search", ["minmax", "mse", "importance"])
@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_feedback_beats_rounding(bits: int, search: ScaleSearch) -> None:
    weight, statistics = make_problem(24, 64)
    asked = options(bits, 32, scale_search=search)
    rounded = objective(
        weight, values_of(rtn.solve(weight, statistics, asked, PLAIN)), statistics.hessian
    )
    fed = objective(
        weight, values_of(gptq.solve(weight, statistics, asked, PLAIN)), statistics.hessian
    )
    assert fed.sum() < 0.9 * rounded.sum()


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("static", [False, True])
@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("bits", [2, 4])
def test_each_sweep_lowers_every_row(
    bits: int, symmetric: bool, static: bool, order: ActOrder
) -> None:
    weight, statistics = make_problem(24, 96, seed=bits)
    h = damped(statistics.hessian, 0.01)
    asked = options(bits, 16, symmetric=symmetric, signed_scales=False)
    losses = []
    for refine in range(4):
        settings = GptqSettings(refine=refine, static_groups=static, act_order=order)
        solved = gptq.solve(weight, statistics, asked, settings)
        assert solved.params.scale.gt(0).all()  # scales were not to change sign
        losses.append(objective(weight, values_of(solved), h))
    assert losses[1].sum() < 0.97 * losses[0].sum()
    for before, after in itertools.pairwise(losses[1:]):
        assert (after <= before * (1 + 1e-5)).all()
    assert losses[3].sum() < losses[1].sum()


def test_the_whole_gains_a_quarter_over_plain_gptq() -> None:
    weight, statistics = make_problem(48, 128, seed=5)
    plain = options(4, 32, scale_search="minmax", signed_scales=False)
    before = gptq.solve(weight, statistics, plain, GptqSettings(damping=0.05, refine=0))
    after = gptq.solve(weight, statistics, options(4, 32), GptqSettings())
    ratio = (
        objective(weight, values_of(after), statistics.hessian).sum()
        / objective(weight, values_of(before), statistics.hessian).sum()
    )
    assert ratio < 0.75


@pytest.mark.parametrize("group_size", [16, 32, 64, -1])
@pytest.mark.parametrize("order", ORDERS)
def test_groups_and_orders_have_their_shapes(order: ActOrder, group_size: int) -> None:
    weight, statistics = make_problem(12, 64)
    solved = gptq.solve(weight, statistics, options(3, group_size), GptqSettings(act_order=order))
    size = 64 if group_size == -1 else group_size
    assert solved.codes.shape == weight.shape
    assert solved.codes.dtype == torch.uint8
    assert int(solved.codes.max()) < 8
    assert solved.params.scale.shape == solved.params.zero.shape == (12, 64 // size)
    assert solved.params.zero.dtype == torch.int32
    assert torch.equal(solved.params.scale, solved.params.scale.half().float())
    index = solved.params.group_index
    assert (index is None) == (order != "full")
    if index is not None:
        activity = statistics.diagonal
        expected = activity.argsort(descending=True).argsort() // size
        assert torch.equal(index.long(), expected)
    assert torch.equal(integer.decode(solved.codes, solved.params), values_of(solved))


def test_static_full_order_keeps_stored_groups_and_their_scales() -> None:
    weight, statistics = make_problem(8, 64)
    settings = GptqSettings(act_order="full", static_groups=True)
    solved = gptq.solve(weight, statistics, options(), settings)
    assert solved.params.group_index is None
    fitted = integer.fit(weight, options(), statistics.diagonal)
    assert torch.equal(solved.params.scale, fitted.scale)


def test_column_orders() -> None:
    diagonal = torch.tensor([1.0, 4.0, 2.0, 2.0, 9.0, 0.0])
    assert column_order(diagonal, 2, "none").tolist() == [0, 1, 2, 3, 4, 5]
    assert column_order(diagonal, 2, "full").tolist() == [4, 1, 2, 3, 0, 5]
    assert column_order(diagonal, 2, "group").tolist() == [4, 5, 1, 0, 2, 3]


@pytest.mark.parametrize("search", ["minmax", "mse", "importance"])
def test_minimum_zero_is_respected(search: ScaleSearch) -> None:
    weight, statistics = make_problem(16, 64)
    asked = options(4, symmetric=False, min_zero=1, scale_search=search)
    assert gptq.solve(weight.abs(), statistics, asked, GptqSettings()).params.zero.min() == 1


def test_dead_inputs_are_rounded_to_nearest_and_disturb_nothing() -> None:
    weight, alive = make_problem(16, 48)
    padded = torch.zeros(16, 64)
    padded[:, :48] = weight
    padded[:, 48:] = torch.linspace(-1, 1, 16)
    hessian = torch.zeros(64, 64)
    hessian[:48, :48] = alive.hessian
    statistics = InputStatistics(hessian=hessian, mean_abs=torch.zeros(64), tokens=alive.tokens)
    asked = options(4, 16, scale_search="minmax")
    solved = gptq.solve(padded, statistics, asked, PLAIN)
    without = gptq.solve(weight, alive, asked, PLAIN)
    assert torch.equal(solved.codes[:, :48], without.codes)
    step = solved.params.scale[:, 3:].abs()
    assert ((values_of(solved) - padded)[:, 48:].abs() <= step * 0.51).all()


def test_outliers_zero_rows_and_zero_groups() -> None:
    weight, statistics = make_problem(12, 64)
    weight[0] = 0
    weight[1, :16] = 0
    weight[2, 5] = 1e4
    weight[3] *= 1e-9
    solved = gptq.solve(weight, statistics, options(), GptqSettings())
    values = values_of(solved)
    assert torch.isfinite(values).all()
    assert values[0].count_nonzero() == 0
    assert values[2, 5] == pytest.approx(1e4, rel=0.1)
    assert solved.params.scale.ne(0).all()


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("method", [gptq, rtn])
def test_weights_that_are_not_numbers(method: object, bad: float) -> None:
    weight, statistics = make_problem(4, 32)
    weight[1, 3] = bad
    with pytest.raises(LlmoptError, match="the weight holds NaN or infinite values"):
        method.solve(weight, statistics, options(), GptqSettings())  # type: ignore[attr-defined]


def test_calibration_is_needed() -> None:
    weight, _ = make_problem(4, 32)
    for statistics in (None, InputStatistics.empty(32, InputMoments(hessian=True))):
        with pytest.raises(LlmoptError, match="gptq needs calibration"):
            gptq.solve(weight, statistics, options(), GptqSettings())


def test_group_size_must_divide() -> None:
    weight, statistics = make_problem(4, 48)
    with pytest.raises(RequestError, match="group size 32 does not divide 48"):
        gptq.solve(weight, statistics, options(4, 32), GptqSettings())


def test_same_input_same_bytes_and_nothing_is_changed() -> None:
    weight, statistics = make_problem(20, 64)
    kept, hessian = weight.clone(), statistics.hessian.clone()
    first = gptq.solve(weight, statistics, options(), GptqSettings())
    again = gptq.solve(weight, statistics, options(), GptqSettings())
    assert torch.equal(first.codes, again.codes)
    assert torch.equal(first.params.scale, again.params.scale)
    assert torch.equal(weight, kept)
    assert torch.equal(statistics.hessian, hessian)


def test_rows_are_independent(monkeypatch: pytest.MonkeyPatch) -> None:
    weight, statistics = make_problem(50, 64)
    whole = gptq.solve(weight, statistics, options(), GptqSettings())
    monkeypatch.setattr(walking, "MOST_ROWS", 16)
    parts = gptq.solve(weight, statistics, options(), GptqSettings())
    assert (whole.codes == parts.codes).float().mean() > 0.995


@pytest.mark.parametrize("span", [16, 32, 96])
def test_how_columns_are_blocked_does_not_matter(
    span: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    weight, statistics = make_problem(30, 96)
    expected = gptq.solve(weight, statistics, options(3, 16), GptqSettings())
    monkeypatch.setattr(sweeps, "_SPAN", span)
    solved = gptq.solve(weight, statistics, options(3, 16), GptqSettings())
    assert (expected.codes == solved.codes).float().mean() > 0.99
