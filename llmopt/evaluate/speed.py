"""How fast a model generates: time to first token, prefill and decode speed, latency per token.

No torch: a model is a function that streams tokens.
"""

from __future__ import annotations

import itertools
import statistics
import time
from collections.abc import Callable, Iterator, Sequence

import numpy as np

from llmopt.errors import LlmoptError
from llmopt.specs.metrics import Metrics

#: (prompt, how many tokens) -> the tokens as they come; it must not stop early
Generate = Callable[[list[int], int], Iterator[int]]
Clock = Callable[[], float]


def measure(
    generate: Generate,
    prompt: Sequence[int],
    new_tokens: int,
    *,
    repeats: int = 3,
    warm_up: int = 1,
    clock: Clock = time.perf_counter,
) -> Metrics:
    """Time `repeats` generations of `new_tokens` >= 2 tokens after `warm_up` untimed ones.

    First token and decode speed are medians over repeats, the quantiles are over all of them.
    """
    assert new_tokens >= 2
    assert repeats >= 1
    assert prompt
    for _ in range(warm_up):
        _steps(generate, prompt, new_tokens, clock)
    runs = [_steps(generate, prompt, new_tokens, clock) for _ in range(repeats)]
    first = statistics.median(run[0] for run in runs)
    later = np.asarray([run[1:] for run in runs])
    p50, p95 = np.quantile(later, [0.5, 0.95])
    return {
        "speed.first_token": first,
        "speed.prefill": len(prompt) / first,
        "speed.decode": statistics.median(((new_tokens - 1) / later.sum(axis=1)).tolist()),
        "speed.token_p50": float(p50),
        "speed.token_p95": float(p95),
    }


def _steps(generate: Generate, prompt: Sequence[int], new_tokens: int, clock: Clock) -> list[float]:
    """Seconds from one token to the next, the first counted from the call."""
    times = [clock()]
    times.extend(clock() for _ in generate(list(prompt), new_tokens))
    if len(times) != new_tokens + 1:
        raise LlmoptError(
            f"the model stopped after {len(times) - 1} of {new_tokens} tokens: "
            "its speed cannot be measured",
            hint="a shorter prompt or fewer new tokens may fit its context",
        )
    return [after - before for before, after in itertools.pairwise(times)]
