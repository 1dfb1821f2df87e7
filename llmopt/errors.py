"""Every error a user can cause or meet, each with its exit code.

    LlmoptError            1  the work failed
    ├── RequestError       2  the request is wrong: usage, recipe, unknown model, unusable input
    │   └── RecipeError    2  ... and the place in the recipe file is known
    ├── GateFailed         3  the result exists and did not pass its quality gate
    └── MissingDependency  4  an optional package is not installed

Anything else that escapes is a bug in llmopt and is reported as one.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from types import ModuleType


class LlmoptError(Exception):
    """The work failed. `hint` says what the user can do about it."""

    exit_code = 1
    #: mistakes that were found together with this one, which is the first of them
    others: tuple[LlmoptError, ...] = ()

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    @property
    def all(self) -> tuple[LlmoptError, ...]:
        """This mistake and the others."""
        return (self, *self.others)


class RequestError(LlmoptError):
    """What was asked for cannot be done as asked; no work was started."""

    exit_code = 2


class RecipeError(RequestError):
    """A recipe says something wrong. `key` is its dotted path, line and column are 1-based.

    `where` is what the message names instead of file and key: a flag, or --set as it was typed.
    """

    def __init__(
        self,
        message: str,
        *,
        file: str = "<command line>",
        line: int | None = None,
        column: int | None = None,
        key: str | None = None,
        hint: str | None = None,
        where: str | None = None,
    ) -> None:
        if where is None:
            place = file if line is None else f"{file}:{line}:{column or 1}"
            where = f"{place}: {key}" if key else place
        super().__init__(f"{where}: {message}" if where else message, hint=hint)
        self.file, self.line, self.column, self.key = file, line, column, key
        self.plain = message


class Mistakes:
    """Mistakes of one request, gathered so that all of them are told at once."""

    def __init__(self) -> None:
        self._found: dict[str, RecipeError] = {}

    def add(self, mistakes: Iterable[LlmoptError]) -> None:
        """Keep the first mistake of each place."""
        for each in mistakes:
            if isinstance(each, RecipeError):
                self._found.setdefault(each.key or each.message, each)

    @contextmanager
    def gathered(self) -> Iterator[None]:
        """A RecipeError of the block is kept, and the block is left."""
        try:
            yield
        except RecipeError as error:
            self.add(error.all)

    def __iter__(self) -> Iterator[RecipeError]:
        return iter(self._found.values())

    def raise_any(self) -> None:
        """Raise the first mistake, the others with it, if there is any."""
        if self._found:
            first, *others = self._found.values()
            first.others = tuple(others)
            raise first from None


class GateFailed(LlmoptError):
    """An artifact was produced and measured, and did not pass its gates."""

    exit_code = 3


class MissingDependency(LlmoptError):
    """An optional package is needed for what was asked."""

    exit_code = 4


@contextmanager
def about(what: str) -> Iterator[None]:
    """Say of errors inside what they are about: a tensor, a file."""
    try:
        yield
    except LlmoptError as error:
        raise type(error)(f"{what}: {error.message}", hint=error.hint) from error


def require(module: str, *, extra: str, purpose: str) -> ModuleType:
    """Import an optional module, or raise MissingDependency with the pip command that adds it."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise MissingDependency(
            f"{purpose} needs the package {module.split('.')[0]}, which is not installed",
            hint=f'pip install "llmopt[{extra}]"',
        ) from error
