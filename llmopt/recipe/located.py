"""Errors with the place in the recipe that asked for it."""

from __future__ import annotations

from typing import Any

from llmopt.errors import RecipeError, RequestError
from llmopt.recipe import Source
from llmopt.recipe.source import Key


def located(source: Source, key: Key, action: Any) -> Any:
    """Run `action`; what is refused gets the place in the recipe that asked for it."""
    try:
        return action()
    except RecipeError:
        raise
    except RequestError as error:
        raise source.error(error.message, key, error.hint) from None
    except OSError as error:  # a name that no file can have, a folder that may not be read
        raise source.error(error.strerror or str(error), key) from None
