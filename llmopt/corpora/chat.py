"""Chat messages to text, through the model's own chat template."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from llmopt.corpora.pretrained import auto_tokenizer
from llmopt.errors import RequestError

Render = Callable[[str, list[object]], str]
"""(place, messages) -> text; the place is for the error message."""


def renderer(folder: Path | None) -> Render:
    """A function that renders messages as the tokenizer in `folder` says.

    The text has the special tokens that the template writes, so it is tokenized without others.
    """
    if folder is None:
        raise RequestError("chat messages need a model, whose chat template renders them")
    tokenizer = auto_tokenizer(folder)
    if not tokenizer.chat_template:
        raise RequestError(
            "the data holds chat messages, and the model's tokenizer has no chat template",
            hint="use text that is already rendered, or a chat model",
        )

    def render(place: str, messages: list[object]) -> str:
        _check(place, messages)
        try:
            return str(tokenizer.apply_chat_template(messages, tokenize=False))
        except Exception as error:  # templates raise what they like, jinja2's errors among it
            raise RequestError(
                f"{place}: the model's chat template refuses these messages ({error})"
            ) from error

    return render


def _check(place: str, messages: list[object]) -> None:
    for number, message in enumerate(messages, start=1):
        if not (isinstance(message, dict) and "role" in message and "content" in message):
            raise RequestError(
                f"{place}: message {number} is not an object with a role and a content"
            )
