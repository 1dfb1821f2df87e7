"""Errors with the place in the recipe that asked for it."""

from __future__ import annotations

from typing import Any

from llmopt.errors import RecipeError, RequestError
from llmopt.recipe import Source
from llmopt.recipe.source import Key


def located(source: Source, key: Key, action: Any) -> Any:
    """Run `action`; a RequestError gets the place in the recipe that asked for it."""
    try:
        return action()
    except RecipeError:
        raise
    except RequestError as error:
        raise source.error(error.message, key, error.hint) from None
