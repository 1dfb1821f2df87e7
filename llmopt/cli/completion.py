"""What shells offer to complete a value with."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import typer


def offered(values: Callable[[], Iterable[str]]) -> Callable[[str], list[str]]:
    """Values that are looked up when they are asked for."""

    def complete(incomplete: str) -> list[str]:
        return [value for value in values() if value.startswith(incomplete)]

    return complete


def shipped() -> Iterable[str]:
    """Names of recipes."""
    from llmopt.recipe import shipped_recipes

    return shipped_recipes()


def keys(ctx: typer.Context, incomplete: str) -> list[str]:
    """The keys of the recipe that was typed before; none of one with mistakes."""
    from llmopt.errors import LlmoptError
    from llmopt.recipe import load
    from llmopt.recipe.fields import settings_in
    from llmopt.recipe.models import settings_of

    try:
        recipe, _ = load(str(ctx.params.get("recipe") or next(iter(ctx.args), "")))
    except LlmoptError:
        return []
    found = ["model", "revision", "seed", "max_memory"]
    found += [
        f"data.{part}.{name}" for part, data in recipe.data for name in type(data).model_fields
    ]
    found += [
        f"steps.{step.id}.{step.verb}.{key}"
        for step in recipe.steps
        for key in settings_in(settings_of(step.verb))
    ]
    return [f"{key}=" for key in found if key.startswith(incomplete)]
