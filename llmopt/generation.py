"""Text in, text out, through a runtime."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from llmopt.corpora.detokenize import StopStrings, TextStream
from llmopt.errors import RequestError
from llmopt.formats.quantization import read_contents
from llmopt.pretrained import panics_as, tokenizer_of
from llmopt.runtimes.base import Engine, Sampling
from llmopt.sources import resolve
from llmopt.specs import RUNTIMES
from llmopt.specs.runtimes import AUTO, runtime_for

#: new tokens where nobody says how many; fewer where the context has no room for them
NEW_TOKENS = 128

#: why a text ended: an end token or a stop string; the number of tokens; the model's context
Finish = Literal["stop", "length", "context"]


@dataclass(frozen=True)
class Request:
    """What is to be continued, and how; see `Sampling`. No tokens: NEW_TOKENS, or what fits."""

    model: str
    prompt: str
    max_new_tokens: int | None = None
    sampling: Sampling = field(default_factory=Sampling)
    stop: tuple[str, ...] = ()
    runtime: str = AUTO
    device: str = AUTO
    dtype: str = AUTO
    threads: int | None = None


class Generation:
    """A continuation that nothing stands in the way of. `pieces` makes it; the rest says what came.

    `tokens` are the new ones, `stop` the stop string that was met.
    """

    def __init__(self, request: Request, tokenizer: Any, ids: list[int], engine: Engine) -> None:
        self.prompt_tokens = len(ids)
        self.tokens: list[int] = []
        self.stop: str | None = None
        self.context = engine.context
        self._room = _room(request, len(ids), engine.context)
        self._stops = StopStrings(request.stop)
        self._text = TextStream(tokenizer, ids)
        self._stream = engine.generate(ids, self._room, sampling=request.sampling)

    def pieces(self) -> Iterator[str]:
        """The text after the prompt as it comes; pieces are whole characters."""
        for token in self._stream:
            self.tokens.append(token)
            yield self._stops.feed(self._text.feed(token))
            if (found := self._stops.found) is not None:
                self.stop = found
                return
        yield self._stops.feed(self._text.finish())
        if (found := self._stops.found) is not None:
            self.stop = found
            return
        yield self._stops.finish()

    @property
    def finish_reason(self) -> Finish:
        """Why it ended, once it has."""
        if self.stop is not None or len(self.tokens) < self._room:
            return "stop"
        full = self.context is not None and self.prompt_tokens + self._room >= self.context
        return "context" if full else "length"


@contextmanager
def generation(request: Request) -> Iterator[Generation]:
    """A generation, all of whose request is checked; its pieces are made inside the block."""
    from llmopt import soundness
    from llmopt.processor import computing_threads
    from llmopt.runtimes.choice import open_engine

    _check(request)
    folder = resolve(request.model).folder
    chosen = runtime_for(request.runtime, read_contents(folder).kind)
    if request.sampling.beams > 1 and not RUNTIMES[chosen].beams:
        raise RequestError(f"{chosen} has no beam search", hint="leave out --beams")
    tokenizer = tokenizer_of(folder)
    ids = _encoded(request.prompt, tokenizer, folder)
    soundness.check_model(folder)
    with computing_threads(request.threads):
        engine = open_engine(chosen, folder, device=request.device, dtype=request.dtype)
        yield Generation(request, tokenizer, ids, engine)


def _check(request: Request) -> None:
    """RequestError for settings that say nothing together."""
    sampling = request.sampling
    numbers = (sampling.temperature, sampling.top_p, sampling.min_p, sampling.repetition_penalty)
    if not all(math.isfinite(number) for number in numbers if number is not None):
        raise RequestError("temperatures, shares and penalties are finite numbers")
    drawn = {"--top-k": sampling.top_k, "--top-p": sampling.top_p, "--min-p": sampling.min_p}
    idle = next((flag for flag, value in drawn.items() if value is not None), None)
    if idle and sampling.temperature == 0:
        raise RequestError(
            f"{idle} says what is drawn from, and at temperature 0 nothing is drawn",
            hint="add --temperature 1, say",
        )
    if sampling.beams > 1 and sampling.temperature > 0:
        raise RequestError(
            "--beams searches for the most probable text, and a temperature draws one",
            hint="leave out one of them",
        )
    if sampling.beams > 1 and request.stop:
        raise RequestError(
            "a beam search ends with the model's end token or the number of tokens, not at --stop",
            hint="leave out one of them",
        )
    if "" in request.stop:
        raise RequestError("an empty --stop is everywhere", hint="give the text to stop at")


def _encoded(prompt: str, tokenizer: Any, folder: Path) -> list[int]:
    if any("\ud800" <= character <= "\udfff" for character in prompt):
        raise RequestError("the prompt is not UTF-8 text")
    with panics_as(f"{folder}: the tokenizer fails on the prompt"):
        ids: list[int] = tokenizer(prompt, verbose=False)["input_ids"]
    if not ids:
        raise RequestError("the prompt is empty", hint="give some text to continue")
    return ids


def _room(request: Request, prompt: int, context: int | None) -> int:
    """How many tokens may come; RequestError where those that were asked for do not fit."""
    wanted = request.max_new_tokens or NEW_TOKENS
    if context is None or prompt + wanted <= context:
        return wanted
    room = context - prompt
    if room < 1:
        raise RequestError(
            f"the prompt has {prompt} tokens, and the model's context of {context} has no room "
            "for one more"
        )
    if request.max_new_tokens is not None:
        raise RequestError(
            f"{prompt} tokens of prompt and {wanted} new ones do not fit the model's context of "
            f"{context}",
            hint=f"-n {room}",
        )
    return room
