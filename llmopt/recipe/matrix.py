"""A step with a matrix becomes one step per combination of its values."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError

from llmopt.recipe.loader import explain
from llmopt.recipe.models import RESERVED_IDS, Recipe, Step
from llmopt.recipe.source import Key, Source
from llmopt.specs import suggestion
from llmopt.specs.base import shortened

#: steps of a recipe, its matrices written out; those that the planner adds are not counted
MAX_STEPS = 1000


@dataclass(frozen=True)
class Expanded:
    """A step of the recipe without a matrix. `key` is where it stands in the recipe."""

    step: Step
    key: Key


def expand(recipe: Recipe, source: Source) -> tuple[list[Expanded], dict[str, list[str]]]:
    """All steps in recipe order, and for each id as written the ids that it became."""
    _check_count(recipe, source)
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
    seen: set[str] = set()
    for expanded in steps:
        if expanded.step.id in seen:
            raise source.error(f"two steps are called {expanded.step.id!r}", (*expanded.key, "id"))
        seen.add(expanded.step.id)
    return steps, ids


def _check_count(recipe: Recipe, source: Source) -> None:
    counts = [math.prod(map(len, step.matrix.values())) for step in recipe.steps]
    if (total := sum(counts)) > MAX_STEPS:
        largest = counts.index(max(counts))
        raise source.error(
            f"the recipe has {total:,} steps, a matrix counted as its combinations; "
            f"at most {MAX_STEPS:,} are allowed",
            ("steps", largest, "matrix") if counts[largest] > 1 else ("steps",),
        )


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
        words = [_word(value) for value in values]
        for index, word in enumerate(words):
            if word in words[:index]:
                raise source.error(f"two values called {shortened(word)!r}", (*place, index))
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
