"""From sums over windows of text to what is said of a model beside its base."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from functools import lru_cache, partial

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from llmopt.errors import LlmoptError, RequestError
from llmopt.evaluate.bootstrap import Array, bootstrap_sums, interval
from llmopt.evaluate.positions import SideBySide
from llmopt.evaluate.probe import Reading
from llmopt.specs.metrics import Interval, Metrics


@dataclass
class Windows:
    """What was found on the windows so far, in the order of the text.

    length: tokens of a window; each but the last predicts one. sums: of each window, those that
    `SideBySide.windows` gives; of a model alone only its negative log likelihood. divergences:
    float32 [length - 1], of each window.
    """

    length: int
    seed: int
    resamples: int = 2000
    sums: list[list[float]] = field(default_factory=list)
    divergences: list[NDArray[np.float32]] = field(default_factory=list)

    def add(self, comparison: SideBySide, model: int = 0) -> None:
        """The windows of a comparison; LlmoptError where the base broke down on one.

        Where it has no models, the base is one by itself, which may have broken down.
        """
        positions = self.length - 1
        if not comparison.models:
            self.sums += comparison.base.nll.view(-1, positions).sum(1, keepdim=True).tolist()
            return
        for sums, divergences in comparison.windows(model, positions):
            if not math.isfinite(sums[0]):
                raise LlmoptError(
                    "the base model's logits are not finite: nothing can be compared with it"
                )
            self.sums.append(sums)
            self.divergences.append(divergences.numpy())

    def reading(self, total: int) -> Reading:
        """What is known now; later windows do not change it."""
        done = len(self.sums)
        summary = lru_cache(maxsize=1)(partial(self._summary, done))
        if not self.divergences:
            return Reading(done, total, lambda: summary().of_base())
        return Reading(done, total, lambda: summary().metrics(), lambda: summary().of_base())

    def _summary(self, done: int) -> _Summary:
        columns = np.asarray(self.sums[:done])
        draws = bootstrap_sums(columns, resamples=self.resamples, seed=self.seed)
        divergences = np.array(self.divergences[:done]).reshape(-1)
        return _Summary(columns, divergences, draws, self.length - 1)


@dataclass(frozen=True)
class _Summary:
    """columns: [windows, (base nll, candidate nll, kl, agreed, lost, gained, changed)], sums over
    each window; draws: [resamples, those]; divergences: one for each of the windows' `positions`.
    """

    columns: Array
    divergences: NDArray[np.float32]
    draws: Array
    positions: int

    def metrics(self) -> Metrics:
        """All that the probe declares."""
        means = self._means
        with np.errstate(invalid="ignore"):  # inf - inf where a candidate broke down
            quantiles = np.quantile(self.divergences.astype(np.float64), [0.5, 0.99, 0.999])
        median, p99, p99_9 = map(float, quantiles)
        return {
            "kl.mean": self._mean(2),
            "kl.median": median,
            "kl.p99": p99,
            "kl.p99_9": p99_9,
            "kl.max": float(self.divergences.max()),
            "agreement": self._mean(3),
            "flips.lost": float(means[4]),
            "flips.gained": float(means[5]),
            "flips.changed": float(means[6]),
            "perplexity": self._exp_of(means[1], self._drawn[:, 1]),
            "perplexity.ratio": self._exp_of(
                means[1] - means[0], self._drawn[:, 1] - self._drawn[:, 0]
            ),
        }

    def of_base(self) -> Metrics:
        """The same windows' perplexity of the base."""
        return {"perplexity": self._exp_of(self._means[0], self._drawn[:, 0])}

    @property
    def _total(self) -> int:
        return len(self.columns) * self.positions

    @property
    def _means(self) -> Array:
        means: Array = self.columns.sum(axis=0) / self._total
        return means

    @property
    def _drawn(self) -> Array:
        return self.draws / self._total

    def _mean(self, column: int) -> Interval:
        return interval(float(self._means[column]), self._drawn[:, column], len(self.columns))

    def _exp_of(self, value: float, draws: Array) -> Interval:
        return interval(float(_exp(np.asarray(value))), _exp(draws), len(self.columns))


def check_windows(windows: Tensor) -> None:
    """RequestError where there are too few windows, or tokens in each, to be evaluated."""
    if windows.dim() != 2 or windows.shape[0] < 2 or windows.shape[1] < 2:
        raise RequestError(
            f"windows of shape {list(windows.shape)} cannot be evaluated: "
            "an interval takes at least 2 windows of at least 2 tokens each"
        )


def check_vocabularies(windows: Tensor, base: int, *others: int) -> None:
    """RequestError where models have other numbers of tokens than the base, or the text needs."""
    if (largest := int(windows.max())) >= base:
        raise RequestError(
            f"the text has token id {largest}, the model's vocabulary ends at {base - 1}",
            hint="evaluate with the tokenizer that belongs to the model",
        )
    for other in others:
        if other != base:
            raise RequestError(
                f"vocabularies differ: {base} tokens in the base, {other} in the candidate",
                hint="compare models of one tokenizer",
            )


def _exp(values: Array) -> Array:
    with np.errstate(over="ignore"):  # a broken model's perplexity may well be infinite
        return np.exp(values)
