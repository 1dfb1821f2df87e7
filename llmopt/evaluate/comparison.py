"""One model against another on the same windows: perplexity, KL divergence, agreement, flips.

Models are functions from tokens to logits; nothing here knows files or engines. Both models see
each window once, side by side, and no logits are kept: what stays is a few sums per window and
one float32 divergence per position.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from llmopt.errors import LlmoptError, RequestError
from llmopt.evaluate.bootstrap import Array, Interval, bootstrap_sums, interval

#: tokens int64 [batch, length] -> logits float32 [batch, length, vocabulary]
Logits = Callable[[Tensor], Tensor]
#: told how many windows are done
Progress = Callable[[int], None]

_ELEMENTS_AT_ONCE = 1 << 22  # logits worked on together; a handful of float32 copies of it live


@dataclass(frozen=True)
class Perplexity:
    """exp of the mean negative log likelihood of each next token."""

    windows: int
    positions: int
    perplexity: Interval

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class PerplexityPair:
    """Both perplexities and candidate / base; the ratio's interval is paired."""

    base: Interval
    candidate: Interval
    ratio: Interval


@dataclass(frozen=True)
class Divergence:
    """KL(base || candidate) over positions, in nats."""

    mean: Interval
    median: float
    p99: float
    p999: float
    max: float


@dataclass(frozen=True)
class Flips:
    """Shares of positions where the top token changed, by which model had the text right."""

    lost: float
    won: float
    both_wrong: float


@dataclass(frozen=True)
class Comparison:
    """What `compare` measures. `agreement` is the share of positions with the same top token."""

    windows: int
    positions: int
    perplexity: PerplexityPair
    kl: Divergence
    agreement: Interval
    flips: Flips

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def perplexity(
    logits: Logits,
    windows: Tensor,
    *,
    batch_size: int = 1,
    resamples: int = 2000,
    seed: int = 0,
    progress: Progress | None = None,
) -> Perplexity:
    """Perplexity of `windows` int64 [windows, length]; a window is the bootstrap's unit."""
    _check_windows(windows)
    rows = []
    for batch in _batches(windows, batch_size, progress):
        scores = _predictions(logits(batch), batch)
        for window, targets in zip(scores, batch[:, 1:].to(scores.device), strict=True):
            rows.append(sum(float(_nll(s, t).sum()) for s, t in _chunks(window, targets)))
    nll = np.asarray(rows)
    total = len(nll) * (windows.shape[1] - 1)
    draws = bootstrap_sums(nll[:, None], resamples=resamples, seed=seed)[:, 0] / total
    estimate = interval(float(_exp(nll.sum() / total)), _exp(draws), len(nll))
    return Perplexity(windows=len(nll), positions=total, perplexity=estimate)


def compare(
    base: Logits,
    candidate: Logits,
    windows: Tensor,
    *,
    batch_size: int = 1,
    resamples: int = 2000,
    seed: int = 0,
    common_vocabulary: bool = False,
    progress: Progress | None = None,
) -> Comparison:
    """Compare two models on `windows` int64 [windows, length], at least two of them.

    Vocabularies of different size are refused, unless `common_vocabulary` says that the longer
    one is only padded: then both are cut to the shorter one, and renormalised.
    A candidate whose logits are not finite yields NaN, which passes no gate; such a base is an
    LlmoptError, for nothing can be compared with it.
    """
    _check_windows(windows)
    table, divergences = [], []
    for batch in _batches(windows, batch_size, progress):
        ours = _predictions(base(batch), batch)
        theirs = _predictions(candidate(batch), batch)
        ours, theirs = _same_vocabulary(ours, theirs, cut=common_vocabulary)
        theirs, targets = theirs.to(ours.device), batch[:, 1:].to(ours.device)
        for window in range(len(batch)):
            row, kl = _compare_window(ours[window], theirs[window], targets[window])
            table.append(row)
            divergences.append(kl)
    columns = np.asarray(table)
    if not np.isfinite(columns[:, 0]).all():
        raise LlmoptError("the base model's logits are not finite: nothing can be compared with it")
    positions = windows.shape[1] - 1
    draws = bootstrap_sums(columns, resamples=resamples, seed=seed)
    return _summary(columns, np.concatenate(divergences), draws, positions)


def _summary(
    columns: Array, divergences: np.ndarray[Any, Any], draws: Array, positions: int
) -> Comparison:
    """columns: [windows, (base nll, candidate nll, kl, agreed, lost, won, both wrong)]."""
    windows = len(columns)
    total = windows * positions
    means, drawn = columns.sum(axis=0) / total, draws / total

    def mean(column: int) -> Interval:
        return interval(float(means[column]), drawn[:, column], windows)

    def exp_of(value: float, sample: Array) -> Interval:
        return interval(float(_exp(np.asarray(value))), _exp(sample), windows)

    with np.errstate(invalid="ignore"):  # inf - inf where a candidate broke down
        median, p99, p999 = np.quantile(divergences.astype(np.float64), [0.5, 0.99, 0.999])
    return Comparison(
        windows=windows,
        positions=total,
        perplexity=PerplexityPair(
            base=exp_of(means[0], drawn[:, 0]),
            candidate=exp_of(means[1], drawn[:, 1]),
            ratio=exp_of(means[1] - means[0], drawn[:, 1] - drawn[:, 0]),
        ),
        kl=Divergence(
            mean=mean(2),
            median=float(median),
            p99=float(p99),
            p999=float(p999),
            max=float(divergences.max()),
        ),
        agreement=mean(3),
        flips=Flips(lost=float(means[4]), won=float(means[5]), both_wrong=float(means[6])),
    )


def _compare_window(
    base: Tensor, candidate: Tensor, targets: Tensor
) -> tuple[list[float], np.ndarray[Any, Any]]:
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


def _batches(windows: Tensor, size: int, progress: Progress | None) -> Iterator[Tensor]:
    for start in range(0, len(windows), size):
        yield windows[start : start + size]
        if progress is not None:
            progress(min(start + size, len(windows)))


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
