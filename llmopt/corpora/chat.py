"""Chat messages to text, through the model's own chat template."""

from __future__ import annotations

import json
import queue
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from llmopt.artifact import JsonObject
from llmopt.corpora import rendering
from llmopt.errors import LlmoptError, RequestError
from llmopt.pretrained import tokenizer_of
from llmopt.specs.base import shortened

Render = Callable[[str, list[object]], str]
"""(place, messages) -> text; the place is for the error message."""

_ROLES = {
    "system": "system",
    **dict.fromkeys(("human", "user"), "user"),
    **dict.fromkeys(("gpt", "assistant", "chatgpt", "bing", "bard", "model", "bot"), "assistant"),
    **dict.fromkeys(("tool", "function", "observation", "function_response"), "tool"),
}
"""Whom ShareGPT's messages are `from` -> the role that templates know."""

_SECONDS = 20
"""For one conversation; templates take milliseconds."""
_MEMORY = 2 << 30
_START_SECONDS = 120  # to import the libraries on a machine that is busy


@contextmanager
def renderer(folder: Path | None, limit: int) -> Iterator[Render]:
    """A function that renders messages as the tokenizer in `folder` says, while the block runs.

    The text has the special tokens that the template writes, so it is tokenized without others.
    A template is a program that came with the model: it runs in a process of its own, sandboxed,
    and is ended where it takes too much time or memory, or makes more than `limit` bytes of text.
    """
    if folder is None:
        raise RequestError("chat messages need a model, whose chat template renders them")
    with _Renderer(folder, limit) as running:
        yield running.render


class _Renderer:
    def __init__(self, folder: Path, limit: int) -> None:
        tokenizer = tokenizer_of(folder)
        self._header = {
            "template": _template(tokenizer), "variables": dict(tokenizer.special_tokens_map),
            "seconds": _SECONDS, "bytes": limit, "memory": _MEMORY,
        }  # fmt: skip

    def __enter__(self) -> _Renderer:
        # -P: the folder of the program holds modules that are called like Python's own
        self._process = subprocess.Popen(
            [sys.executable, "-P", rendering.__file__],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
            text=True, encoding="utf-8",
        )  # fmt: skip
        self._answers: queue.Queue[str] = queue.Queue()
        self._listener = threading.Thread(target=self._listen, daemon=True)
        self._listener.start()
        try:
            if self._ask(self._header, _START_SECONDS) is None:
                raise LlmoptError("the program that renders chat templates did not start")
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.kill()
        self._process.wait()
        self._listener.join()
        self._process.stdout.close()
        with suppress(OSError):  # what was still to be written to it
            self._process.stdin.close()

    def render(self, place: str, messages: list[object]) -> str:
        """RequestError where the messages are none, or the template refuses or abuses them."""
        answer = self._ask(plain(place, messages), _SECONDS)
        if answer is None:
            raise RequestError(
                f"{place}: the model's chat template does not come to an end with these messages"
            )
        if "error" in answer:
            cause = " ".join(answer["error"].split())
            raise RequestError(
                f"{place}: the model's chat template refuses these messages ({cause})"
            )
        return str(answer["text"])

    def _ask(self, document: object, seconds: float) -> dict[str, str] | None:
        """The answer; None where there is none in time, or the program has ended."""
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps(document) + "\n")
            self._process.stdin.flush()
            line = self._answers.get(timeout=seconds)
        except (queue.Empty, BrokenPipeError):
            return None
        answer: dict[str, str] | None = json.loads(line) if line else None
        return answer

    def _listen(self) -> None:
        """Hand on lines as they come, and an empty one at the end."""
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self._answers.put(line)
        self._answers.put("")


def _template(tokenizer: Any) -> str:
    if not tokenizer.chat_template:
        raise RequestError(
            "the data holds chat messages, and the model's tokenizer has no chat template",
            hint="use text that is already rendered, or a chat model",
        )
    try:
        return str(tokenizer.get_chat_template())
    except ValueError as error:
        known = ", ".join(sorted(tokenizer.chat_template))
        raise RequestError(
            f"the model has several chat templates ({known}) and none is the default",
            hint="name one of them default",
        ) from error


def plain(place: str, messages: list[object]) -> list[JsonObject]:
    """The messages as templates expect them, without members that are null, as transformers has it.

    RequestError where they are not objects with a role and a content, or with from and value.
    """
    return [_message(f"{place}: message {n}", each) for n, each in enumerate(messages, start=1)]


def _message(place: str, message: object) -> JsonObject:
    if isinstance(message, dict):
        given = {key: value for key, value in message.items() if value is not None}
        if "role" in given and "content" in message:
            return given
        if "from" in given and "value" in given:
            return _of_sharegpt(place, given["from"], given["value"])
    raise RequestError(
        f"{place} is not an object with a role and a content, nor one with from and value"
    )


def _of_sharegpt(place: str, speaker: object, text: object) -> JsonObject:
    if not isinstance(text, str):
        raise RequestError(f"{place}: its value is no text")
    role = _ROLES.get(speaker.lower()) if isinstance(speaker, str) else None
    if role is None:
        raise RequestError(
            f"{place} is from {shortened(str(speaker))!r}, whose role is not known",
            hint=f"known are {', '.join(_ROLES)}; or give messages a role and a content",
        )
    return {"role": role, "content": text}
