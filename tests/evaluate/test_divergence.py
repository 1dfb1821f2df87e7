"""Every figure of a comparison against its definition in float64."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from llmopt.errors import LlmoptError, RequestError
from llmopt.evaluate import divergence
from llmopt.evaluate.divergence import Logits
from llmopt.evaluate.positions import kl_divergence
from llmopt.evaluate.probe import Reading
from llmopt.specs.metrics import Interval, value_of

VOCABULARY = 50


def model(seed: int, *, noise: float = 0.0, width: int = VOCABULARY) -> Callable[[Tensor], Tensor]:
    """A bigram table as a language model; `noise` moves its logits."""
    table = torch.randn(width, width, generator=torch.Generator().manual_seed(seed)) * 2
    moved = torch.randn(width, width, generator=torch.Generator().manual_seed(seed + 1))
    table = table + noise * moved
    return lambda tokens: table[tokens]


def windows(count: int = 6, length: int = 33) -> Tensor:
    return torch.randint(VOCABULARY, (count, length), generator=torch.Generator().manual_seed(9))


class Found:
    """The last reading of a probe."""

    def __init__(self, readings: Iterator[Reading]) -> None:
        *_, self.reading = readings
        assert self.reading.final

    def __getitem__(self, metric: str) -> float:
        return value_of(self.reading.metrics[metric])

    def interval(self, metric: str) -> Interval:
        found = self.reading.metrics[metric]
        assert isinstance(found, Interval)
        return found

    @property
    def base(self) -> float:
        return value_of(self.reading.base_metrics["perplexity"])


def compare(base: Logits, candidate: Logits, tokens: Tensor, **options: Any) -> Found:
    return Found(divergence.compare(base, candidate, tokens, **options))


def test_a_model_against_itself_shows_nothing() -> None:
    result = compare(model(0), model(0), windows())
    assert result["kl.max"] == 0.0
    assert result.interval("kl.mean") == Interval(0.0, 0.0, 0.0)
    assert result["agreement"] == 1.0
    assert result["perplexity.ratio"] == 1.0
    assert (result["flips.lost"], result["flips.gained"], result["flips.changed"]) == (
        0.0,
        0.0,
        0.0,
    )


def test_every_figure_matches_its_definition_in_float64() -> None:
    tokens = windows()
    base, candidate = model(0), model(0, noise=0.5)
    result = compare(base, candidate, tokens, batch_size=4)
    log_p = base(tokens).double().log_softmax(-1)[:, :-1]
    log_q = candidate(tokens).double().log_softmax(-1)[:, :-1]
    target = tokens[:, 1:, None]
    kl = (log_p.exp() * (log_p - log_q)).sum(-1)
    right_p = log_p.argmax(-1, keepdim=True) == target
    right_q = log_q.argmax(-1, keepdim=True) == target
    same = log_p.argmax(-1) == log_q.argmax(-1)
    lnppl_p, lnppl_q = -log_p.gather(-1, target).mean(), -log_q.gather(-1, target).mean()
    assert result["kl.mean"] == pytest.approx(kl.mean().item(), rel=1e-5)
    assert result["kl.median"] == pytest.approx(np.median(kl.numpy()), rel=1e-4)
    assert result["kl.p99"] == pytest.approx(np.quantile(kl.numpy(), 0.99), rel=1e-4)
    assert result["kl.max"] == pytest.approx(kl.max().item(), rel=1e-4)
    assert result.base == pytest.approx(lnppl_p.exp().item(), rel=1e-5)
    assert result["perplexity"] == pytest.approx(lnppl_q.exp().item(), rel=1e-5)
    assert result["perplexity.ratio"] == pytest.approx((lnppl_q - lnppl_p).exp().item())
    assert result["agreement"] == pytest.approx(same.double().mean().item())
    right_p, right_q = right_p[..., 0], right_q[..., 0]
    assert result["flips.lost"] == pytest.approx((right_p & ~right_q).double().mean().item())
    assert result["flips.gained"] == pytest.approx((right_q & ~right_p).double().mean().item())
    both = (~same & ~right_p & ~right_q).double().mean().item()
    assert result["flips.changed"] == pytest.approx(both)
    assert result["flips.lost"] > 0
    assert both > 0
    changed = result["flips.lost"] + result["flips.gained"] + result["flips.changed"]
    assert result["agreement"] == pytest.approx(1 - changed)


def test_intervals_hold_their_values_and_are_ordered() -> None:
    result = compare(model(0), model(0, noise=0.3), windows(12))
    for found in map(result.interval, ("kl.mean", "agreement", "perplexity.ratio")):
        assert found.low < found.value < found.high


@pytest.mark.parametrize("gap", [80.0, 200.0, math.inf])
def test_divergence_of_distributions_that_barely_overlap(gap: float) -> None:
    """The base gives a token (nearly) nothing, the candidate half of everything."""
    base = torch.tensor([[0.0, -gap]]).log_softmax(-1)
    candidate = torch.tensor([[0.0, 0.0]]).log_softmax(-1)
    assert kl_divergence(base, candidate).item() == pytest.approx(math.log(2))
    assert kl_divergence(candidate, base).item() == pytest.approx(0.5 * gap - math.log(2), abs=1e-4)


def test_tokens_that_both_models_exclude_do_not_count() -> None:
    base = torch.tensor([[0.0, 1.0, -math.inf]]).log_softmax(-1)
    candidate = torch.tensor([[1.0, 0.0, -math.inf]]).log_softmax(-1)
    cut = kl_divergence(base[:, :2], candidate[:, :2])
    assert torch.equal(kl_divergence(base, candidate), cut)


def test_chunks_and_batches_do_not_change_the_result(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = compare(model(0), model(0, noise=0.5), windows())
    monkeypatch.setattr("llmopt.evaluate.positions._ELEMENTS_AT_ONCE", 7 * VOCABULARY)
    parts = compare(model(0), model(0, noise=0.5), windows(), batch_size=5)
    assert parts["kl.mean"] == pytest.approx(whole["kl.mean"], rel=1e-7)
    for flips in ("flips.lost", "flips.gained", "flips.changed"):
        assert parts[flips] == whole[flips]


def test_readings_count_windows_and_each_is_that_of_its_own_windows() -> None:
    tokens, models = windows(5), (model(0), model(0, noise=0.5))
    seen = list(divergence.compare(*models, tokens, batch_size=2))
    assert [(reading.done, reading.total) for reading in seen] == [(0, 5), (2, 5), (4, 5), (5, 5)]
    assert seen[0].metrics == {}
    assert seen[2].metrics == compare(*models, tokens[:4]).reading.metrics  # asked for afterwards
    alone = list(divergence.perplexity(model(0), tokens, batch_size=2))
    assert [reading.done for reading in alone] == [0, 2, 4, 5]


def test_an_estimate_from_one_window_has_no_interval() -> None:
    first = list(divergence.compare(model(0), model(0, noise=0.5), windows()))[1]
    found = first.metrics["kl.mean"]
    assert isinstance(found, Interval)
    assert found.value > 0
    assert math.isnan(found.low)
    assert math.isnan(found.high)


def test_perplexity_alone_is_the_same_number() -> None:
    alone = Found(divergence.perplexity(model(0), windows()))
    beside = compare(model(0), model(1), windows())
    assert alone.reading.metrics == beside.reading.base_metrics


def test_vocabularies_that_differ_are_refused() -> None:
    padded = torch.zeros(VOCABULARY, VOCABULARY + 3)
    with pytest.raises(RequestError, match="50 tokens in the base, 53 in the candidate"):
        compare(model(0), lambda tokens: padded[tokens], windows())


def test_tokens_beyond_the_vocabulary_are_refused() -> None:
    small = model(0, width=20)
    with pytest.raises(RequestError, match="token id 47, the model's vocabulary ends at 19"):
        Found(divergence.perplexity(lambda tokens: small(tokens.clamp(max=19)), windows()))


@pytest.mark.parametrize("shape", [(1, 10), (4, 1), (10,)])
def test_too_little_text_is_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(RequestError, match="at least 2 windows of at least 2 tokens"):
        compare(model(0), model(0), torch.zeros(shape, dtype=torch.int64))


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_broken_candidate_gives_no_number_and_a_broken_base_is_an_error(bad: float) -> None:
    def broken(tokens: Tensor) -> Tensor:
        logits = model(0)(tokens).clone()
        logits[:, 3, 5] = bad
        return logits

    result = compare(model(0), broken, windows())
    assert math.isnan(result["kl.mean"])
    assert math.isnan(result["perplexity.ratio"])
    with pytest.raises(LlmoptError, match="base model's logits are not finite"):
        compare(broken, model(0), windows())
