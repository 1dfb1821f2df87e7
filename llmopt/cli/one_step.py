"""The one-step recipe that a command stands for, and which flag gave each of its keys."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from llmopt.cli.flags import KeyFlag, Value
from llmopt.errors import Mistakes, RecipeError
from llmopt.recipe.models import RESERVED_IDS
from llmopt.recipe.source import CommandOption

Typed = Mapping[KeyFlag, Value]


def named(flags: Sequence[KeyFlag], typed: Typed) -> dict[str, CommandOption]:
    """Keys of a command's recipe -> their flags; of two for one key, the one that was typed."""
    found = {"model": CommandOption("MODEL")}
    for flag in flags:
        if flag.key not in found or flag in typed:
            found[flag.key] = flag.option(typed.get(flag))
    return found


def recipe_of(
    verb: str,
    model: str,
    typed: Typed,
    out: Path,
    mistakes: Mistakes,
    more: Mapping[str, object],
) -> dict[str, object]:
    """The one-step recipe of a model, the flags that were typed, and `more` settings."""
    name = re.sub(r"[^A-Za-z0-9_.-]", "_", out.absolute().name).lstrip("._-")[:80] or verb
    recipe: dict[str, object] = {"version": 1, "name": name, "model": model}
    texts: dict[str, dict[str, object]] = {}
    settings: dict[str, object] = {}
    for key, value in _values(typed, mistakes).items():
        match key.split("."):
            case ["data", part, word]:
                texts.setdefault(part, {})[word] = value
            case [_, word]:
                settings[word] = value
            case _:
                recipe[key] = value
    if "source" in texts.get("evaluation", {}) and "field" in texts.get("calibration", {}):
        texts["evaluation"].setdefault("field", texts["calibration"]["field"])
    step = f"{verb}-{name}" if name in {*RESERVED_IDS, "demo"} else name
    recipe |= {"data": texts} if texts else {}
    return recipe | {"steps": [{"id": step, verb: {**settings, **more}}]}


def _values(typed: Typed, mistakes: Mistakes) -> dict[str, object]:
    """Keys -> what was typed for them; several flags of a list add up, of a value they clash."""
    values: dict[str, object] = {}
    first: dict[str, KeyFlag] = {}
    for flag, text in typed.items():
        value, before = flag.read(text, mistakes), values.get(flag.key)
        if value is None:  # it is among the mistakes
            continue
        if flag.key not in first:
            values[flag.key], first[flag.key] = value, flag
        elif isinstance(before, list) and isinstance(value, list):
            values[flag.key] = [*before, *value]
        else:
            message = f"says the same thing as {first[flag.key].name}: give one of them"
            mistakes.add([RecipeError(message, where=flag.name)])
    return values
