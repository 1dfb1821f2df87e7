"""A step with a matrix becomes one step per combination of its values."""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

from llmopt.errors import Mistakes, RecipeError
from llmopt.recipe.fields import settings_in
from llmopt.recipe.mistakes import validated
from llmopt.recipe.models import RESERVED_IDS, Recipe, Step, step_class
from llmopt.recipe.source import Key, Source
from llmopt.specs import suggestion
from llmopt.specs.base import shortened

#: steps of a recipe, its matrices written out; those that the planner adds are not counted
MAX_STEPS = 1000


@dataclass(frozen=True)
class Expanded:
    """A step of the recipe without a matrix. `key` is where it stands in the recipe.

    `source` knows which of its settings stand in the matrix.
    """

    step: Step
    key: Key
    source: Source


def expand(recipe: Recipe, source: Source) -> tuple[list[Expanded], dict[str, list[str]]]:
    """All steps in recipe order, and for each id as written the ids that it became."""
    _check_count(recipe, source)
    steps: list[Expanded] = []
    ids: dict[str, list[str]] = {}
    mistakes = Mistakes()
    for index, step in enumerate(recipe.steps):
        key: Key = ("steps", index)
        if step.id in ids:
            mistakes.add([source.error(f"two steps are called {step.id!r}", (*key, "id"))])
        if step.id in RESERVED_IDS:
            mistakes.add([source.error(f"{step.id!r} is a reserved name", (*key, "id"))])
        members = []
        with mistakes.gathered():
            members = list(_combinations(step, source, key))
        ids[step.id] = [m.step.id for m in members]
        steps += members
    names = Counter(expanded.step.id for expanded in steps)
    mistakes.add(
        source.error(f"two steps are called {expanded.step.id!r}", (*expanded.key, "id"))
        for expanded in steps
        if names[expanded.step.id] > 1
    )
    mistakes.raise_any()
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


def _combinations(step: Step, source: Source, key: Key) -> Iterator[Expanded]:
    if not step.matrix:
        yield Expanded(step, key, source)
        return
    mistakes = Mistakes()
    mistakes.add(_mistakes(step, source, (*key, "matrix")))
    mistakes.raise_any()
    names = list(step.matrix)
    for numbered in itertools.product(*(enumerate(values) for values in step.matrix.values())):
        values = {name: value for name, (_, value) in zip(names, numbered, strict=True)}
        moved = {
            (*key, step.verb, name): (*key, "matrix", name, index)
            for name, (index, _) in zip(names, numbered, strict=True)
        }
        with mistakes.gathered():
            within = replace(source, moved=moved)
            yield Expanded(_combine(step, values, within, key), key, within)
    mistakes.raise_any()


def _mistakes(step: Step, source: Source, key: Key) -> Iterator[RecipeError]:
    """What is wrong with a matrix itself."""
    known = settings_in(type(step.settings))
    for name, values in step.matrix.items():
        place = (*key, name)
        if name not in known:
            message = f"{step.verb} has no setting to vary"
            yield source.error(message, place, suggestion(name, known))
        if not values:
            yield source.error("an empty list of values", place)
        words = [_word(value) for value in values]
        for index, word in enumerate(words):
            if word in words[:index]:
                yield source.error(f"two values called {shortened(word)!r}", (*place, index))


def _combine(step: Step, values: Mapping[str, object], source: Source, key: Key) -> Step:
    given = source.value((*key, step.verb))
    name = "-".join([step.id, *(_word(value) for value in values.values())])
    data = {"id": name, step.verb: {**given, **values}}
    return validated(step_class(), data, source, key)


def _word(value: object) -> str:
    """A value as part of a step id."""
    text = str(value).lower() if isinstance(value, bool) else str(value)
    return "".join(c if c.isalnum() or c in "._" else "_" for c in text)
