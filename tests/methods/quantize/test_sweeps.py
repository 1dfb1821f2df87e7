"""That descent asks for what its columns owe each other, and knows what is left of the loss."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from llmopt.formats.codec import decode
from llmopt.grids.base import GridOptions
from llmopt.linalg import InputStatistics, factor
from llmopt.methods.quantize import blockwise, gptq, sweeps
from llmopt.methods.quantize.settings import Feedback, GptqSettings
from llmopt.processor import computing_threads
from llmopt.specs import walking
from tests.methods.quantize.reference import make_problem


@pytest.fixture(params=[2048, 40], ids=["two matrices", "one square"])
def problem(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> tuple[Tensor, InputStatistics]:
    monkeypatch.setattr(factor, "BLOCK", request.param)
    monkeypatch.setattr(sweeps, "_SPAN", 32)
    return make_problem(20, 128)


@pytest.mark.parametrize("count", [1, 2, 3])
def test_visits_are_asked_for_h_times_the_residual(
    problem: tuple[Tensor, InputStatistics], count: int
) -> None:
    weight, statistics = problem
    order = torch.argsort(statistics.diagonal)
    residual, visited = weight.T.index_select(0, order), list[int]()
    whole = statistics.hessian.clone()[order][:, order]
    made = statistics.factor(0.01, order=order)
    whole.diagonal().add_(made.added)

    def visit(block: slice[int, int, None], asked: Tensor) -> None:
        visited.append(block.start)
        torch.testing.assert_close(asked, whole[block] @ residual, rtol=1e-4, atol=1e-4)
        residual[block] += 0.1

    sweeps.descend(made, residual, 16, visit, count)
    there = list(range(0, 128, 16))
    assert visited == (there + there[::-1] + there)[: 8 * count]


@pytest.mark.parametrize("refine", [0, 1, 2, 3])
@pytest.mark.parametrize("method", ["gptq", "blockwise"])
def test_losses_are_those_of_what_is_stored(
    problem: tuple[Tensor, InputStatistics], method: str, refine: int
) -> None:
    weight, statistics = problem
    if method == "gptq":
        options = GridOptions(grid="int3", bits=3, group_size=16)
        solved = gptq.solve(weight, statistics, options, GptqSettings(refine=refine))
    else:
        solved = blockwise.solve(weight, statistics, "Q4_0", Feedback(refine=refine))
    if refine == 0:
        assert solved.losses is None
        return
    error = decode(solved).double() - weight.double()
    expected = ((error @ statistics.hessian.double()) * error).sum(1)
    assert solved.losses is not None
    torch.testing.assert_close(solved.losses, expected, rtol=1e-3, atol=0)


@pytest.mark.parametrize("method", ["gptq", "blockwise"])
def test_threads_share_rows_and_change_no_bit(
    problem: tuple[Tensor, InputStatistics], method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    weight, statistics = problem
    monkeypatch.setattr(walking, "MOST_ROWS", 6)
    statistics.factor = lambda *_, made=statistics.factor(0.01), **__: made  # type: ignore
    found = []
    for threads in (1, 2, 3):
        with computing_threads(threads):
            if method == "gptq":
                options = GridOptions(grid="int3", bits=3, group_size=16)
                solved = gptq.solve(weight, statistics, options, GptqSettings(act_order="none"))
                found.append([solved.codes, solved.params.scale])
            else:
                found.append([blockwise.solve(weight, statistics, "Q4_0", Feedback()).data])
            assert torch.get_num_threads() == threads
    for other in found[1:]:
        assert all(map(torch.equal, found[0], other))
