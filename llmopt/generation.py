"""Text in, text out, through a runtime."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from llmopt.errors import RequestError
from llmopt.sources import resolve
from llmopt.specs import RUNTIMES


def load_engine(folder: Path, runtime: str, **options: Any) -> Any:
    """The engine of a runtime for the model in `folder`."""
    module = importlib.import_module(RUNTIMES[runtime].module)
    return module.load(folder, **options)


def stream_text(
    model: str, prompt: str, max_new_tokens: int, *, temperature: float, seed: int,
    dtype: str, device: str, runtime: str = "torch",
) -> Iterator[str]:  # fmt: skip
    """Yield the continuation of `prompt` piece by piece; pieces are whole characters."""
    from llmopt.corpora.pretrained import auto_tokenizer
    from llmopt.runtimes.device import pick_device

    folder = resolve(model).folder
    tokenizer = auto_tokenizer(folder)
    ids = tokenizer(prompt)["input_ids"]
    if not ids:
        raise RequestError("the prompt is empty", hint="give some text to continue")
    engine = load_engine(folder, runtime, dtype=dtype, device=pick_device(device))
    pending: list[int] = []
    for token in engine.generate(ids, max_new_tokens, temperature=temperature, seed=seed):
        pending.append(token)
        text = tokenizer.decode(pending, skip_special_tokens=True)
        if text and not text.endswith("\ufffd"):  # half a character waits for its rest
            yield text
            pending = []
