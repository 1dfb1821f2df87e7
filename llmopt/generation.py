"""Text in, text out, through a runtime."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from llmopt.errors import RequestError
from llmopt.formats.quantization import read_contents
from llmopt.sources import resolve
from llmopt.specs.runtimes import AUTO, runtime_for


def stream_text(
    model: str, prompt: str, max_new_tokens: int, *, temperature: float, seed: int,
    dtype: str, device: str, runtime: str = AUTO, threads: int | None = None,
) -> Iterator[str]:  # fmt: skip
    """Yield the continuation of `prompt` piece by piece; pieces are whole characters."""
    from llmopt import soundness
    from llmopt.pretrained import tokenizer_of
    from llmopt.runtimes.choice import computing_threads, open_engine

    folder = resolve(model).folder
    chosen = runtime_for(runtime, read_contents(folder).runs_as)
    soundness.check_model(folder)
    tokenizer = tokenizer_of(folder)
    ids = tokenizer(prompt)["input_ids"]
    if not ids:
        raise RequestError("the prompt is empty", hint="give some text to continue")
    with computing_threads(threads):
        engine = open_engine(chosen, folder, device=device, dtype=dtype)
        tokens = engine.generate(ids, max_new_tokens, temperature=temperature, seed=seed)
        yield from _pieces(tokens, tokenizer)


def _pieces(tokens: Iterator[int], tokenizer: Any) -> Iterator[str]:
    """The text of tokens as soon as its last character is whole."""
    pending: list[int] = []
    for token in tokens:
        pending.append(token)
        text = tokenizer.decode(pending, skip_special_tokens=True)
        if text and not text.endswith("\ufffd"):  # half a character waits for its rest
            yield text
            pending = []
