"""A recipe's data, and where each part of it stood."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from llmopt.errors import RecipeError, RequestError
from llmopt.specs.base import shortened

Key = tuple[str | int, ...]

#: what stands for a file where the command line made the recipe
COMMAND_LINE = "<command line>"


@dataclass(frozen=True)
class CommandOption:
    """An option of the command line; `means` is what a switch stands for."""

    name: str
    means: bool | None = None


@dataclass
class Source:
    """A parsed recipe. `places` maps a key path to the 1-based (line, column) of its key.

    `typed` maps a key path to the --set option that gave it; `moved` one to where its value really
    stands, in a matrix. A recipe that the command line made has no places, but `flags`: keys
    without steps and positions ("quantize.group_size") -> their flags.
    """

    file: str
    data: Any = None
    places: dict[Key, tuple[int, int]] = field(default_factory=dict)
    typed: dict[Key, str] = field(default_factory=dict)
    moved: Mapping[Key, Key] = field(default_factory=dict)
    flags: Mapping[str, CommandOption] = field(default_factory=dict)

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
        """A mistake in what stands at `key`, as the file, --set or a flag says it."""
        key = self.given_at(key)
        nearest = self._nearest(key)
        if nearest in self.typed:
            where = f"--set {shortened(self.typed[nearest])}"
            return RecipeError(message, file="--set", key=dotted(key), hint=hint, where=where)
        if self.file == COMMAND_LINE:
            flag = self.flag(key)
            where = flag.name if flag else "" if self.flags else dotted(key)
            return RecipeError(message, key=dotted(key), hint=hint, where=where)
        line, column = self.place(key)
        return RecipeError(
            message, file=self.file, line=line, column=column, key=dotted(key), hint=hint
        )

    @contextmanager
    def at(self, key: Key) -> Iterator[None]:
        """What is refused inside gets the place in the recipe that asked for it."""
        try:
            yield
        except RecipeError:
            raise
        except RequestError as error:
            raise self.error(error.message, key, error.hint) from None
        except OSError as error:  # a name that no file can have, a folder that may not be read
            raise self.error(error.strerror or str(error), key) from None

    def flag(self, key: Key) -> CommandOption | None:
        """The option of the command line that gives what stands at `key`, or around it."""
        words = _words(key)
        while words and ".".join(words) not in self.flags:
            words.pop()
        return self.flags.get(".".join(words))

    def says(self, key: Key, value: str | float | bool) -> str:
        """How one writes that the setting at `key` is `value`: in YAML, or with its flag."""
        flag = self.flags.get(".".join(_words(key)))
        if flag is None:
            written = str(value).lower() if isinstance(value, bool) else value
            return f"{key[-1]}: {written}"
        if flag.means is None:
            return f"{flag.name} {value}"
        return flag.name if flag.means == value else f"without {flag.name}"

    def given_at(self, key: Key) -> Key:
        """Where the value of a setting really stands: `to: gguf:Q4_K_M` gives a preset, too."""
        key = self._moved(key)
        there = self.existing(key) == key or key in self.places
        return key if there or key[-1:] != ("preset",) else (*key[:-1], "to")

    def existing(self, key: Key) -> Key:
        """The longest part of a key that is a key of the recipe."""
        value: Any = self.data
        for count, part in enumerate(key):
            try:
                value = value[part]
            except (KeyError, IndexError, TypeError):
                return key[:count]
        return key

    def value(self, key: Key) -> Any:
        """What is written for the setting at `key`, in a matrix too; None where nothing is."""
        value: Any = self.data
        for part in self._moved(key):
            try:
                value = value[part]
            except (KeyError, IndexError, TypeError):
                return None
        return value

    def _moved(self, key: Key) -> Key:
        for count in range(len(key), 0, -1):
            if (there := self.moved.get(key[:count])) is not None:
                return (*there, *key[count:])
        return key

    def _nearest(self, key: Key) -> Key:
        while key and key not in self.places and key not in self.typed:
            key = key[:-1]
        return key


def _words(key: Key) -> list[str]:
    """A key without steps and positions."""
    return [part for part in key if isinstance(part, str)][key[:1] == ("steps",) :]


def dotted(key: Key) -> str:
    """('steps', 0, 'quantize') -> 'steps[0].quantize'."""
    text = ""
    for part in key:
        name = f"[{part}]" if isinstance(part, int) else shortened(part)
        text += f".{name}" if text and isinstance(part, str) else name
    return text
