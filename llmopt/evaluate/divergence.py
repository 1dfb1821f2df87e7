"""One model against another on the same windows: perplexity, KL divergence, agreement, flips.

Below `measure`, models are functions from tokens to logits. Both models see
each window once, side by side, and no logits are kept: what stays is a few sums per window and
one float32 divergence per position.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import lru_cache, partial

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from llmopt.errors import LlmoptError, RequestError
from llmopt.evaluate.bootstrap import Array, bootstrap_sums, interval
from llmopt.evaluate.probe import Reading, Subject
from llmopt.specs.metrics import Interval, Metrics

#: tokens int64 [batch, length] -> logits float32 [batch, length, vocabulary]
Logits = Callable[[Tensor], Tensor]

_ELEMENTS_AT_ONCE = 1 << 22  # logits worked on together; a handful of float32 copies of it live


def measure(subject: Subject) -> Iterator[Reading]:
    """Run the model beside its base, window by window; the base itself, or without one, alone."""
    windows, seed = subject.windows, subject.seed
    if subject.base is None or subject.base is subject.model:
        engine = subject.open_engine(subject.model)
        yield from perplexity(engine.logits, windows, seed=seed)
    else:
        base, engine = subject.open_engine(subject.base), subject.open_engine(subject.model)
        yield from compare(base.logits, engine.logits, windows, seed=seed)


def perplexity(
    logits: Logits, windows: Tensor, *, batch_size: int = 1, resamples: int = 2000, seed: int = 0
) -> Iterator[Reading]:
    """Perplexity of `windows` int64 [windows, length]; a window is the bootstrap's unit."""
    _check_windows(windows)
    rows: list[float] = []
    positions = windows.shape[1] - 1

    def metrics(done: int) -> Metrics:
        nll = np.asarray(rows[:done])
        total = done * positions
        draws = bootstrap_sums(nll[:, None], resamples=resamples, seed=seed)[:, 0] / total
        return {"perplexity": interval(float(_exp(nll.sum() / total)), _exp(draws), done)}

    yield Reading(0, len(windows))
    for batch in _batches(windows, batch_size):
        scores = _predictions(logits(batch), batch)
        for window, targets in zip(scores, batch[:, 1:].to(scores.device), strict=True):
            rows.append(sum(float(_nll(s, t).sum()) for s, t in _chunks(window, targets)))
        yield Reading(len(rows), len(windows), partial(metrics, len(rows)))


def compare(
    base: Logits,
    candidate: Logits,
    windows: Tensor,
    *,
    batch_size: int = 1,
    resamples: int = 2000,
    seed: int = 0,
    common_vocabulary: bool = False,
) -> Iterator[Reading]:
    """Compare two models on `windows` int64 [windows, length], at least two of them.

    Vocabularies of different size are refused, unless `common_vocabulary` says that the longer
    one is only padded: then both are cut to the shorter one, and renormalised.
    A candidate whose logits are not finite yields NaN, which passes no gate; such a base is an
    LlmoptError, for nothing can be compared with it.
    """
    _check_windows(windows)
    seen = _Seen(windows.shape[1] - 1, resamples, seed)
    yield Reading(0, len(windows))
    for batch in _batches(windows, batch_size):
        ours = _predictions(base(batch), batch)
        theirs = _predictions(candidate(batch), batch)
        ours, theirs = _same_vocabulary(ours, theirs, cut=common_vocabulary)
        theirs, targets = theirs.to(ours.device), batch[:, 1:].to(ours.device)
        for window in range(len(batch)):
            seen.add(*_compare_window(ours[window], theirs[window], targets[window]))
        yield seen.reading(len(windows))


@dataclass
class _Seen:
    """What was found on the windows so far: their sums, and a divergence for each position."""

    positions: int
    resamples: int
    seed: int
    sums: list[list[float]] = field(default_factory=list)
    divergences: list[NDArray[np.float32]] = field(default_factory=list)

    def add(self, sums: list[float], divergences: NDArray[np.float32]) -> None:
        """One window; LlmoptError where the base broke down on it."""
        if not math.isfinite(sums[0]):
            raise LlmoptError(
                "the base model's logits are not finite: nothing can be compared with it"
            )
        self.sums.append(sums)
        self.divergences.append(divergences)

    def reading(self, total: int) -> Reading:
        """What is known now; later windows do not change it."""
        done = len(self.sums)
        summary = lru_cache(maxsize=1)(partial(self._summary, done))
        return Reading(done, total, lambda: summary().metrics(), lambda: summary().of_base())

    def _summary(self, done: int) -> _Summary:
        columns = np.asarray(self.sums[:done])
        draws = bootstrap_sums(columns, resamples=self.resamples, seed=self.seed)
        return _Summary(columns, np.concatenate(self.divergences[:done]), draws, self.positions)


@dataclass(frozen=True)
class _Summary:
    """columns: [windows, (base nll, candidate nll, kl, agreed, lost, gained, changed)], sums over
    each window; draws: [resamples, those]; divergences: one a position."""

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


def _compare_window(
    base: Tensor, candidate: Tensor, targets: Tensor
) -> tuple[list[float], NDArray[np.float32]]:
    """The seven sums of one window, and its divergences, float32 [positions]."""
    sums = torch.zeros(7, dtype=torch.float64)
    divergences = []
    for ours, theirs, wanted in _chunks(base, candidate, targets):
        log_p, log_q = ours.log_softmax(-1), theirs.log_softmax(-1)
        kl = kl_divergence(log_p, log_q)
        divergences.append(kl.float().cpu())
        top_p, top_q = ours.argmax(-1), theirs.argmax(-1)
        same = top_p == top_q
        right_p, right_q = top_p == wanted, top_q == wanted
        parts = (
            -log_p.gather(-1, wanted[:, None]),
            -log_q.gather(-1, wanted[:, None]),
            kl,
            same,
            right_p & ~same,
            right_q & ~same,
            ~same & ~right_p & ~right_q,
        )
        sums += torch.stack([part.sum(dtype=torch.float64).cpu() for part in parts])
    return sums.tolist(), torch.cat(divergences).numpy()


def kl_divergence(log_p: Tensor, log_q: Tensor) -> Tensor:
    """KL(p || q) in nats over the last dimension, summed in float64.

    Adds q - p, whose sum is zero, to every term p (log p - log q): each term is then at least
    zero and of second order in the difference, so that rounding in float32 logarithms does not
    hide a divergence of 1e-6. The textbook sum's own noise is near 1e-7 times log p.
    """
    p, difference = log_p.exp(), log_p - log_q
    excess = torch.where(
        difference.abs() < 1, p * torch.expm1(-difference), log_q.exp() - p
    )  # q - p without cancellation, and without overflow where q is far above p
    excess += torch.where(p > 0, p * difference, 0.0)
    return excess.sum(-1, dtype=torch.float64)


def _nll(logits: Tensor, targets: Tensor) -> Tensor:
    """Negative log likelihood of each target, float64 [positions]."""
    return -logits.log_softmax(-1).gather(-1, targets[:, None])[:, 0].double()


def _chunks(*tensors: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """Runs of positions of [positions, ...] tensors; logits come first, and as float32."""
    step = max(1, _ELEMENTS_AT_ONCE // tensors[0].shape[-1])
    for start in range(0, len(tensors[-1]), step):
        yield tuple(
            part.float() if part.is_floating_point() else part
            for part in (tensor[start : start + step] for tensor in tensors)
        )


def _batches(windows: Tensor, size: int) -> Iterator[Tensor]:
    for start in range(0, len(windows), size):
        yield windows[start : start + size]


def _check_windows(windows: Tensor) -> None:
    if windows.dim() != 2 or windows.shape[0] < 2 or windows.shape[1] < 2:
        raise RequestError(
            f"windows of shape {list(windows.shape)} cannot be evaluated: "
            "an interval takes at least 2 windows of at least 2 tokens each"
        )


def _predictions(logits: Tensor, batch: Tensor) -> Tensor:
    """The logits that predict a token of the window: all but the last position's."""
    vocabulary, largest = logits.shape[-1], int(batch.max())
    if largest >= vocabulary:
        raise RequestError(
            f"the text has token id {largest}, the model's vocabulary ends at {vocabulary - 1}",
            hint="evaluate with the tokenizer that belongs to the model",
        )
    return logits[:, :-1]


def _same_vocabulary(base: Tensor, candidate: Tensor, *, cut: bool) -> tuple[Tensor, Tensor]:
    ours, theirs = base.shape[-1], candidate.shape[-1]
    if ours == theirs:
        return base, candidate
    if not cut:
        raise RequestError(
            f"vocabularies differ: {ours} tokens in the base, {theirs} in the candidate",
            hint="compare models of one tokenizer; padding rows alone can be cut off on request",
        )
    common = min(ours, theirs)
    return base[..., :common], candidate[..., :common]


def _exp(values: Array) -> Array:
    with np.errstate(over="ignore"):  # a broken model's perplexity may well be infinite
        return np.exp(values)
