"""A recipe's data, and where each part of it stood."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from llmopt.errors import RecipeError
from llmopt.specs.base import shortened

Key = tuple[str | int, ...]


@dataclass
class Source:
    """A parsed recipe. `places` maps a key path to the 1-based (line, column) of its key.

    `typed` maps a key path to the --set option that gave it.
    """

    file: str
    data: Any = None
    places: dict[Key, tuple[int, int]] = field(default_factory=dict)
    typed: dict[Key, str] = field(default_factory=dict)

    def set(self, key: Key, typed: str) -> None:
        """What stands at `key` and below was given by --set."""
        for known in (self.places, self.typed):
            for below in [each for each in known if each[: len(key)] == key]:
                del known[below]
        self.typed[key] = typed

    def place(self, key: Key) -> tuple[int | None, int | None]:
        """Where `key` stands, or its nearest parent that stands anywhere."""
        return self.places.get(self._nearest(key), (None, None))

    def error(self, message: str, key: Key, hint: str | None = None) -> RecipeError:
        """A mistake in what stands at `key`, as the file or --set says it."""
        nearest = self._nearest(key)
        if nearest in self.typed:
            where = f"--set {shortened(self.typed[nearest])}"
            return RecipeError(message, file="--set", key=dotted(key), hint=hint, where=where)
        line, column = self.place(key)
        return RecipeError(
            message, file=self.file, line=line, column=column, key=dotted(key), hint=hint
        )

    def _nearest(self, key: Key) -> Key:
        while key and key not in self.places and key not in self.typed:
            key = key[:-1]
        return key


def dotted(key: Key) -> str:
    """('steps', 0, 'quantize') -> 'steps[0].quantize'."""
    text = ""
    for part in key:
        name = f"[{part}]" if isinstance(part, int) else shortened(part)
        text += f".{name}" if text and isinstance(part, str) else name
    return text
