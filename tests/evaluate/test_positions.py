"""Figures from logits in slices against their definition in float64."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from llmopt.evaluate.positions import SideBySide, kl_divergence

POSITIONS, VOCABULARY = 40, 700


def pair(noise: float, spread: float = 3.0, shift: float = 0.7) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(3)
    logits = torch.randn(POSITIONS, VOCABULARY, generator=generator) * spread
    moved = logits + noise * torch.randn(POSITIONS, VOCABULARY, generator=generator)
    return logits, moved + shift


def exact(base: Tensor, model: Tensor) -> Tensor:
    p, q = base.double().log_softmax(-1), model.double().log_softmax(-1)
    return (p.exp() * (p - q)).sum(-1)


def compared(base: Tensor, *models: Tensor, slices: int, rows: int = POSITIONS) -> SideBySide:
    found = SideBySide(torch.arange(POSITIONS), len(models))
    for first in range(0, VOCABULARY, slices):
        for start in range(0, POSITIONS, rows):
            place = slice(start, start + rows), slice(first, first + slices)
            found.add(start, first, [each[place] for each in (base, *models)])
    return found


@pytest.mark.parametrize("noise", [1e-4, 1e-3, 0.1, 3.0])
def test_divergence_is_that_of_float64_however_small(noise: float) -> None:
    base, model = pair(noise)
    expected = exact(base, model)
    assert torch.allclose(kl_divergence(base, model), expected, rtol=1e-4, atol=1e-15)
    assert (kl_divergence(base, model) >= 0).all()
    if noise == 1e-4:
        assert expected.mean() < 1e-8


@pytest.mark.parametrize(("slices", "rows"), [(1, 40), (33, 7), (699, 40)])
def test_slices_and_runs_change_nothing(slices: int, rows: int) -> None:
    base, model = pair(0.3)
    whole, parts = (
        compared(base, model, model * 2, slices=VOCABULARY),
        compared(base, model, model * 2, slices=slices, rows=rows),
    )
    for index in (0, 1):
        torch.testing.assert_close(
            parts.divergence(index), whole.divergence(index), rtol=1e-11, atol=1e-13
        )
    for ours, theirs in zip((parts.base, *parts.models), (whole.base, *whole.models), strict=True):
        torch.testing.assert_close(ours.nll, theirs.nll, rtol=1e-13, atol=0)
        assert torch.equal(ours.top, theirs.top)
    assert torch.equal(whole.base.top, base.argmax(-1))
    nll = -base.double().log_softmax(-1)[torch.arange(POSITIONS), torch.arange(POSITIONS)]
    torch.testing.assert_close(parts.base.nll, nll)


def test_of_equal_logits_the_first_token_is_the_top_one() -> None:
    flat = torch.zeros(POSITIONS, VOCABULARY)
    assert not compared(flat, slices=9).base.top.any()


def test_tokens_that_a_model_excludes() -> None:
    base, model = pair(0.3)
    base[:, :300] = model[:, :200] = -math.inf  # a whole slice of one, and of both
    found = compared(base, model, slices=100).divergence(0)
    kept = slice(300, VOCABULARY)
    lost = model.double().logsumexp(-1) - model[:, kept].double().logsumexp(-1)
    torch.testing.assert_close(found, exact(base[:, kept], model[:, kept]) + lost)
    model[:, 500] = -math.inf
    assert (compared(base, model, slices=100).divergence(0) == math.inf).all()


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_what_is_not_finite_leaves_its_position_without_a_number(bad: float) -> None:
    base, model = pair(0.3)
    model[3, 5] = bad
    found = compared(base, model, slices=100)
    assert found.divergence(0).isnan().nonzero().flatten().tolist() == [3]
    assert found.models[0].nll.isnan().nonzero().flatten().tolist() == [3]
    assert compared(model, base, slices=100).base.nll.isnan().sum() == 1


def test_what_was_kept_goes_on_as_if_nothing_had_happened() -> None:
    base, model = pair(0.3)
    whole = compared(base, model, slices=350)
    first, second = SideBySide(torch.arange(POSITIONS), 1), SideBySide(torch.arange(POSITIONS), 1)
    first.add(0, 0, (base[:, :350], model[:, :350]))
    second.restore({name: tensor.clone() for name, tensor in first.state().items()})
    second.add(0, 350, (base[:, 350:], model[:, 350:]))
    assert second.state().keys() == whole.state().keys()
    assert all(torch.equal(whole.state()[name], each) for name, each in second.state().items())
