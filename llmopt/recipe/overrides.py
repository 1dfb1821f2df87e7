"""--set KEY=VALUE: one key of a recipe, given on the command line."""

from __future__ import annotations

import re
from typing import Any

from llmopt.errors import RecipeError
from llmopt.recipe.reader import parse_value
from llmopt.recipe.source import Key, Source, dotted
from llmopt.specs.base import shortened, suggestion

_MAX_PARTS = 32


def apply(override: str, source: Source) -> None:
    """Set one key of the recipe in `source`; steps are named by index or by id.

    Raises RecipeError where the key has no place, or the value is not YAML.
    """
    path, equals, text = override.partition("=")
    where = f"--set {shortened(override)}"
    parts = re.sub(r"\[(\w+)\]", r".\1", path).split(".")
    if not equals or not all(parts) or len(parts) > _MAX_PARTS:
        raise RecipeError(
            "expected key=value", where=where, hint="--set steps.ID.quantize.grid=int3"
        )
    value = parse_value(text, where)
    key = _key(source.data, parts, where)
    _put(source.data, key, value)
    source.set(key, override)


def _key(target: Any, parts: list[str], where: str) -> Key:
    """The key path that the words of a dotted path name."""
    key: Key = ()
    while parts:
        if isinstance(target, list):
            index, parts = _item(target, parts, where)
            key, target = (*key, index), target[index]
        elif target is None or isinstance(target, dict):
            name, *parts = parts
            key, target = (*key, name), (target or {}).get(name)
        else:
            raise RecipeError(f"{dotted(key)} has no {shortened(parts[0])!r} to set", where=where)
    return key


def _item(items: list[Any], parts: list[str], where: str) -> tuple[int, list[str]]:
    """The position that the first words name, by number or by a step's id, and the other words."""
    ids = [str(item.get("id")) if isinstance(item, dict) else "" for item in items]
    for index, id_ in enumerate(ids):
        words = id_.split(".")
        if parts[0] == str(index) or parts[: len(words)] == words:
            return index, parts[1 if parts[0] == str(index) else len(words) :]
    hint = suggestion(parts[0], [*filter(None, ids)]) if any(ids) else None
    raise RecipeError(f"there is no {shortened(parts[0])!r} to set", where=where, hint=hint)


def _put(target: Any, key: Key, value: Any) -> None:
    for part in key[:-1]:
        if isinstance(target, dict) and target.get(part) is None:
            target[part] = {}
        target = target[part]
    target[key[-1]] = value
