"""Speed on a clock that stands still but where it is told, and peaks that can be seen."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from llmopt.errors import LlmoptError
from llmopt.evaluate.memory import held_memory, peak_memory
from llmopt.evaluate.speed import measure


class Model:
    """Takes 2 s to the first token and 0.5 s to each later one; ten times that when cold."""

    def __init__(self) -> None:
        self.now, self.calls = 0.0, 0

    def clock(self) -> float:
        return self.now

    def generate(self, prompt: list[int], count: int) -> Iterator[int]:
        self.calls += 1
        slow = 10 if self.calls == 1 else 1
        for index in range(count):
            self.now += (0.5 if index else 2.0) * slow
            yield index


def test_figures_and_warm_up() -> None:
    model = Model()
    speed = measure(model.generate, range(100), 5, repeats=3, clock=model.clock)
    assert model.calls == 4
    assert speed["speed.first_token"] == 2.0
    assert speed["speed.prefill"] == 50.0
    assert speed["speed.decode"] == 2.0
    assert (speed["speed.token_p50"], speed["speed.token_p95"]) == (0.5, 0.5)


def test_without_warm_up_the_cold_call_is_counted() -> None:
    model = Model()
    speed = measure(model.generate, [1], 3, repeats=1, warm_up=0, clock=model.clock)
    assert speed["speed.first_token"] == 20.0
    assert speed["speed.decode"] == pytest.approx(0.2)


def test_a_model_that_stops_early_is_an_error() -> None:
    with pytest.raises(LlmoptError, match="stopped after 2 of 5 tokens"):
        measure(lambda prompt, count: iter([1, 2]), [1], 5)


def test_peak_memory_sees_what_is_gone_again() -> None:
    block = bytearray(b"x" * (96 << 20))
    held = held_memory().resident
    del block
    assert peak_memory().resident >= held > held_memory().resident + (80 << 20)
