"""A step with a matrix becomes one step per combination of its values."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError

from llmopt.recipe.loader import explain
from llmopt.recipe.models import RESERVED_IDS, Recipe, Step
from llmopt.recipe.source import Key, Source
from llmopt.specs import suggestion


@dataclass(frozen=True)
class Expanded:
    """A step of the recipe without a matrix. `key` is where it stands in the recipe."""

    step: Step
    key: Key


def expand(recipe: Recipe, source: Source) -> tuple[list[Expanded], dict[str, list[str]]]:
    """All steps in recipe order, and for each id as written the ids that it became."""
    steps: list[Expanded] = []
    ids: dict[str, list[str]] = {}
    for index, step in enumerate(recipe.steps):
        key: Key = ("steps", index)
        if step.id in ids:
            raise source.error(f"two steps are called {step.id!r}", (*key, "id"))
        if step.id in RESERVED_IDS:
            raise source.error(f"{step.id!r} is a reserved name", (*key, "id"))
        members = [Expanded(s, key) for s in _combinations(step, source, key)]
        ids[step.id] = [m.step.id for m in members]
        steps += members
    names = [s.step.id for s in steps]
    for expanded in steps:
        if names.count(expanded.step.id) > 1:
            raise source.error(f"two steps are called {expanded.step.id!r}", (*expanded.key, "id"))
    return steps, ids


def _combinations(step: Step, source: Source, key: Key) -> list[Step]:
    if not step.matrix:
        return [step]
    fields = type(step.settings).model_fields
    known = {info.alias or name for name, info in fields.items()}
    for name, values in step.matrix.items():
        place = (*key, "matrix", name)
        if name not in known:
            raise source.error(
                f"{step.verb} has no setting to vary", place, suggestion(name, known)
            )
        if not values:
            raise source.error("an empty list of values", place)
    return [
        _combine(step, dict(zip(step.matrix, values, strict=True)), source, key)
        for values in itertools.product(*step.matrix.values())
    ]


def _combine(step: Step, values: dict[str, Any], source: Source, key: Key) -> Step:
    given = step.settings.model_dump(by_alias=True, exclude_unset=True)
    name = "-".join([step.id, *(_word(value) for value in values.values())])
    data = {"id": name, step.verb: given | values}
    try:
        return Step.model_validate(data)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        setting = str(first["loc"][1]) if len(first["loc"]) > 1 else ""
        place = (*key, "matrix", setting) if setting in values else (*key, step.verb, setting)
        raise explain(source, first, place) from None


def _word(value: Any) -> str:
    """A value as part of a step id."""
    text = str(value).lower() if isinstance(value, bool) else str(value)
    return "".join(c if c.isalnum() or c in "._" else "_" for c in text)
