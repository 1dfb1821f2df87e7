"""One model against another on the same windows: perplexity, KL divergence, agreement, flips.

Below `measure`, models are functions from tokens to logits. Both models see each window once, side
by side, and no logits are kept: what stays is a few sums per window and one float32 divergence per
position. Models that do not fit in memory go a block at a time: llmopt.evaluate.lockstep.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from llmopt.evaluate.positions import SideBySide
from llmopt.evaluate.probe import Reading, Subject
from llmopt.evaluate.windows import Windows, check_vocabularies, check_windows

#: tokens int64 [batch, length] -> logits float32 [batch, length, vocabulary]
Logits = Callable[[Tensor], Tensor]


def measure(subject: Subject) -> Iterator[Reading]:
    """Run the model beside its base, window by window; the base itself, or without one, alone."""
    windows, seed = subject.windows, subject.seed
    if subject.together is not None:
        yield from subject.together(subject)
    elif subject.base is None or subject.base is subject.model:
        engine = subject.open_engine(subject.model)
        yield from perplexity(engine.logits, windows, seed=seed)
    else:
        base, engine = subject.open_engine(subject.base), subject.open_engine(subject.model)
        yield from compare(base.logits, engine.logits, windows, seed=seed)


def perplexity(
    logits: Logits, windows: Tensor, *, batch_size: int = 1, seed: int = 0
) -> Iterator[Reading]:
    """Perplexity of `windows` int64 [windows, length]; a window is the bootstrap's unit."""
    yield from _readings([logits], windows, batch_size, seed)


def compare(
    base: Logits, candidate: Logits, windows: Tensor, *, batch_size: int = 1, seed: int = 0
) -> Iterator[Reading]:
    """Compare two models on `windows` int64 [windows, length], at least two of them.

    RequestError where their vocabularies differ. A candidate whose logits are not finite yields
    NaN, which passes no gate; such a base is an LlmoptError, for nothing can be compared with it.
    """
    yield from _readings([base, candidate], windows, batch_size, seed)


def _readings(
    models: Sequence[Logits], windows: Tensor, batch_size: int, seed: int
) -> Iterator[Reading]:
    check_windows(windows)
    found = Windows(windows.shape[1], seed)
    yield Reading(0, len(windows))
    for batch in torch.split(windows, batch_size):
        found.add(_comparison(batch, [model(batch) for model in models]))
        yield found.reading(len(windows))


def _comparison(batch: Tensor, logits: Sequence[Tensor]) -> SideBySide:
    """Models by their logits [batch, length, vocabulary], the base first."""
    check_vocabularies(batch, *(each.shape[-1] for each in logits))
    device, positions = logits[0].device, batch.shape[1] - 1
    found = SideBySide(batch[:, 1:].reshape(-1).to(device), len(logits) - 1)
    for window in range(len(batch)):
        rows = [each[window, :-1].to(device) for each in logits]
        found.add(window * positions, 0, rows)
    return found
