"""Error feedback on ggml's formats, against its definition and against rounding alone."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from llmopt.errors import LlmoptError, RequestError
from llmopt.grids import ggml
from llmopt.linalg import InputMoments, InputStatistics
from llmopt.methods.quantize import blockwise
from llmopt.methods.quantize.settings import Feedback
from llmopt.specs.ggml import GGML_TYPES
from tests.grids.ggml.away import Away

#: one of every kind: plain, with minimums, super-blocks, a table of levels, codebooks
TYPES = ("Q4_0", "Q4_1", "Q2_K", "Q4_K", "Q6_K", "IQ4_XS", "MXFP4", "IQ3_XXS", "IQ2_XS", "IQ1_M")


def problem(cols: int = 512, rows: int = 24) -> tuple[Tensor, InputStatistics]:
    generator = torch.Generator().manual_seed(1)
    mix = torch.randn(cols, cols, generator=generator) / cols**0.5
    inputs = torch.randn(4 * cols, cols, generator=generator) @ (mix + 0.3 * torch.eye(cols))
    statistics = InputStatistics.empty(cols, InputMoments(hessian=True))
    statistics.add(inputs * (1 + 3 * torch.rand(cols, generator=generator)))
    return torch.randn(rows, cols, generator=generator), statistics


def loss(weight: Tensor, data: Tensor, type_id: str, statistics: InputStatistics) -> float:
    error = (ggml.decode(type_id, data) - weight).double()
    return float(((error @ statistics.hessian.double()) * error).sum())


@pytest.mark.parametrize("type_id", TYPES)
def test_feedback_beats_importance_and_sweeps_beat_feedback(type_id: str) -> None:
    weight, statistics = problem()
    plain = ggml.encode(type_id, weight, statistics.diagonal, "best")
    once, swept = (
        blockwise.solve(weight, statistics, type_id, Feedback(refine=refine)) for refine in (0, 2)
    )
    spec = GGML_TYPES[type_id]
    assert swept.data.shape == (24, 512 // spec.block * spec.nbytes)
    found = [loss(weight, data, type_id, statistics) for data in (plain, once.data, swept.data)]
    assert found[1] < 0.9 * found[0]
    assert found[2] < found[1]


@pytest.mark.parametrize("type_id", TYPES)
def test_rows_do_not_depend_on_each_other(type_id: str) -> None:
    """In what they lose, not in their bytes: products of other shapes add in other orders."""
    weight, statistics = problem()
    whole = blockwise.solve(weight, statistics, type_id, Feedback())
    rows = slice(3, 20)
    some = blockwise.solve(weight[rows], statistics, type_id, Feedback())
    found, expected = (
        loss(weight[rows], data, type_id, statistics) for data in (some.data, whole.data[rows])
    )
    assert found == pytest.approx(expected, rel=0.03)


def test_without_correlation_feedback_is_rounding() -> None:
    """A diagonal Hessian leaves nothing to make up for: only the search for scales remains."""
    weight, _ = problem(256)
    statistics = InputStatistics(hessian=torch.eye(256), mean_abs=torch.ones(256), tokens=10)
    solved = blockwise.solve(weight, statistics, "Q8_0", Feedback(refine=0))
    rounded = ggml.encode("Q8_0", weight, torch.ones(256), "best")
    close = loss(weight, solved.data, "Q8_0", statistics)
    assert close == pytest.approx(loss(weight, rounded, "Q8_0", statistics), rel=1e-3)


def test_inputs_that_are_always_zero_do_no_harm() -> None:
    weight, statistics = problem(256)
    statistics.hessian[:, 7] = statistics.hessian[7, :] = 0.0
    solved = blockwise.solve(weight, statistics, "Q4_K", Feedback())
    values = ggml.decode("Q4_K", solved.data)
    assert bool(values.isfinite().all())
    assert float((values - weight).abs().max()) < 1.0


def test_without_statistics_there_is_no_feedback() -> None:
    nothing = InputStatistics.empty(256, InputMoments(hessian=True))
    with pytest.raises(LlmoptError, match="calibration"):
        blockwise.solve(torch.ones(1, 256), nothing, "Q4_K", Feedback())


@pytest.mark.parametrize("size", [1e6, 1e9])
@pytest.mark.parametrize("type_id", ["Q4_0", "Q2_K", "IQ1_M", "NVFP4"])
def test_weights_that_are_too_large_are_refused(type_id: str, size: float) -> None:
    weight, statistics = problem(256, 4)
    with pytest.raises(RequestError, match=f"the weights are too large for {type_id}"):
        blockwise.solve(weight * size, statistics, type_id, Feedback(refine=1))


def test_types_that_need_the_cpu_are_solved_there() -> None:
    weight, statistics = problem(256, 4)
    solved = blockwise.solve(weight.as_subclass(Away), statistics, "IQ4_XS", Feedback(refine=0))
    assert solved.data.device.type == "meta"
