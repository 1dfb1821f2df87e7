"""Token ids to text, piece by piece, with the same text in the end as all at once. No torch."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from typing import Any

#: a token that is a byte: runs of them are decoded together, so that one more can change all
_BYTE = re.compile(r"<0x[0-9A-Fa-f]{2}>")
#: tokens of settled text that are decoded again with new ones: what a decoder does to a token
#: depends on few before it
_BEHIND = 64


class TextStream:
    """What tokens add to a prompt: decode(prompt + tokens) without decode(prompt).

    So a space that a tokenizer joins to the first new word is there, and one at the start of the
    prompt is not decoded away. Special tokens are left out.
    """

    def __init__(self, tokenizer: Any, prompt: list[int]) -> None:
        self._tokenizer = tokenizer
        self._ids = list(prompt)
        self._told = len(self._decode())
        cleans = tokenizer.clean_up_tokenization_spaces
        self._settled: Callable[[str], int] = _before_last_space if cleans else len

    def feed(self, token: int) -> str:
        """The text that is certain now that this token has come, maybe none."""
        self._ids.append(token)
        if self._leaves_open(token):
            return ""
        text = self._decode()
        certain = text.rstrip("\ufffd")  # half a character waits for its rest
        piece = certain[self._told : self._settled(certain)]
        self._told += len(piece)
        if self._told == len(text):
            self._forget()
        return piece

    def finish(self) -> str:
        """The text that waited for more tokens."""
        return self._decode()[self._told :]

    def _leaves_open(self, token: int) -> bool:
        """Whether a run of bytes may go on after a token: it is one, or is left out of the text."""
        if _BYTE.fullmatch(str(self._tokenizer.convert_ids_to_tokens(token))):
            return True
        return not self._tokenizer.decode([token], skip_special_tokens=True)

    def _decode(self) -> str:
        return str(self._tokenizer.decode(self._ids, skip_special_tokens=True))

    def _forget(self) -> None:
        """Keep the last tokens only, so that a long text is not decoded for every token of it."""
        if len(self._ids) < 4 * _BEHIND:
            return
        shorter = self._ids[-_BEHIND:]
        if text := self._tokenizer.decode(shorter, skip_special_tokens=True):
            self._ids, self._told = shorter, len(text)


def _before_last_space(text: str) -> int:
    """Up to where a tokenizer that cleans up spaces ("don 't" to "don't") changes no more."""
    start = max(text.rfind(" "), 0)
    return len(text[:start].rstrip(" "))


class StopStrings:
    """Passes text on up to the first of some strings; `found` is that string, None so far."""

    def __init__(self, strings: Iterable[str]) -> None:
        self._strings = tuple(strings)
        self._held = ""
        self.found: str | None = None

    def feed(self, piece: str) -> str:
        """The text that is before any of the strings for certain."""
        text = self._held + piece
        places = [(text.find(string), string) for string in self._strings if string in text]
        if places:
            place, self.found = min(places, key=lambda found: (found[0], -len(found[1])))
            self._held = ""
            return text[:place]
        held = max((_overlap(text, string) for string in self._strings), default=0)
        self._held = text[len(text) - held :]
        return text[: len(text) - held]

    def finish(self) -> str:
        """The text that might have begun a string."""
        return self._held


def _overlap(text: str, string: str) -> int:
    """How many of the last characters of `text` begin `string`."""
    sizes: Iterator[int] = (
        size for size in range(len(string) - 1, 0, -1) if text.endswith(string[:size])
    )
    return next(sizes, 0)
