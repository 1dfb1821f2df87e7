"""The one-step recipe that a command stands for, and which flag gave each of its keys."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from llmopt.cli.flags import KeyFlag
from llmopt.errors import Mistakes, RecipeError
from llmopt.recipe.models import RESERVED_IDS
from llmopt.recipe.source import Option

Typed = Mapping[KeyFlag, object]


def named(flags: Sequence[KeyFlag], typed: Typed) -> dict[str, Option]:
    """Keys of a command's recipe -> their flags; of two for one key, the one that was typed."""
    found = {"model": Option("MODEL")}
    for flag in flags:
        if flag.key not in found or flag in typed:
            found[flag.key] = flag.option(typed.get(flag))
    return found


def recipe_of(verb: str, model: str, typed: Typed, out: Path, mistakes: Mistakes) -> dict[str, Any]:
    """The one-step recipe that a model and the flags that were typed stand for."""
    name = re.sub(r"[^A-Za-z0-9_.-]", "_", out.absolute().name).lstrip("._-")[:80] or verb
    values = _values(typed, mistakes)
    if "data.evaluation.source" in values and "data.calibration.field" in values:
        values.setdefault("data.evaluation.field", values["data.calibration.field"])
    recipe: dict[str, Any] = {"version": 1, "name": name, "model": model}
    settings: dict[str, Any] = {}
    for key, value in values.items():
        *around, last = key.split(".")
        target = recipe
        for part in around:
            target = settings if part == verb else target.setdefault(part, {})
        target[last] = value
    step = f"{verb}-{name}" if name in {*RESERVED_IDS, "demo"} else name
    return recipe | {"steps": [{"id": step, verb: settings}]}


def _values(typed: Typed, mistakes: Mistakes) -> dict[str, Any]:
    """Keys -> what was typed for them; several flags of a list add up, of a value they clash."""
    values: dict[str, Any] = {}
    first: dict[str, KeyFlag] = {}
    for flag, text in typed.items():
        value = flag.read(text, mistakes)
        if value is None:  # it is among the mistakes
            continue
        if flag.key not in first:
            values[flag.key], first[flag.key] = value, flag
        elif flag.kind == "list":
            values[flag.key] = values[flag.key] + value
        else:
            message = f"says the same thing as {first[flag.key].name}: give one of them"
            mistakes.add([RecipeError(message, where=flag.name)])
    return values
