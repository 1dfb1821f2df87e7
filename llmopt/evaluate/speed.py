"""How fast a model generates: time to first token, prefill and decode speed, latency per token.

No torch: a model is a function that streams tokens.
"""

from __future__ import annotations

import itertools
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from llmopt.errors import LlmoptError

#: (prompt, how many tokens) -> the tokens as they come; it must not stop early
Generate = Callable[[list[int], int], Iterator[int]]
Clock = Callable[[], float]


@dataclass(frozen=True)
class Speed:
    """Seconds and tokens per second.

    `first_token`: from the call to the first token, the median over repeats. `prefill`: prompt
    tokens per second of that time. `decode`: tokens per second after the first, the median over
    repeats. `p50` and `p95`: seconds per token after the first, over all repeats together.
    """

    prompt_tokens: int
    new_tokens: int
    repeats: int
    first_token: float
    prefill: float
    decode: float
    p50: float
    p95: float

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def measure(
    generate: Generate,
    prompt: Sequence[int],
    new_tokens: int,
    *,
    repeats: int = 3,
    warm_up: int = 1,
    clock: Clock = time.perf_counter,
) -> Speed:
    """Time `repeats` generations of `new_tokens` >= 2 tokens after `warm_up` untimed ones."""
    assert new_tokens >= 2
    assert repeats >= 1
    assert prompt
    for _ in range(warm_up):
        _steps(generate, prompt, new_tokens, clock)
    runs = [_steps(generate, prompt, new_tokens, clock) for _ in range(repeats)]
    first = statistics.median(run[0] for run in runs)
    later = np.asarray([run[1:] for run in runs])
    p50, p95 = np.quantile(later, [0.5, 0.95])
    return Speed(
        prompt_tokens=len(prompt),
        new_tokens=new_tokens,
        repeats=repeats,
        first_token=first,
        prefill=len(prompt) / first,
        decode=statistics.median(((new_tokens - 1) / later.sum(axis=1)).tolist()),
        p50=float(p50),
        p95=float(p95),
    )


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
