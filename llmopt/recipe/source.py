"""YAML to plain data, remembering where everything stood."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, field
from typing import Any

import yaml

from llmopt.errors import RecipeError

Key = tuple[str | int, ...]

_VARIABLE = re.compile(r"\$\{(\w+)(?::-([^}]*))?\}")


@dataclass
class Source:
    """A parsed recipe. `places` maps a key path to the 1-based (line, column) of its key."""

    file: str
    data: Any = None
    places: dict[Key, tuple[int, int]] = field(default_factory=dict)

    def place(self, key: Key) -> tuple[int | None, int | None]:
        """Where `key` stands, or its nearest parent that stands anywhere."""
        while key and key not in self.places:
            key = key[:-1]
        return self.places.get(key, (None, None))

    def error(self, message: str, key: Key, hint: str | None = None) -> RecipeError:
        line, column = self.place(key)
        return RecipeError(
            message, file=self.file, line=line, column=column, key=dotted(key), hint=hint
        )


def dotted(key: Key) -> str:
    """('steps', 0, 'quantize') -> 'steps[0].quantize'."""
    text = ""
    for part in key:
        text += f"[{part}]" if isinstance(part, int) else f".{part}" if text else part
    return text


def parse(text: str, file: str) -> Source:
    """Parse YAML. Raises RecipeError for bad syntax, doubled keys and undefined variables."""
    source = Source(file)
    try:
        node = yaml.compose(text, Loader=yaml.SafeLoader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        raise RecipeError(
            f"not valid YAML: {error.problem or error.context}",
            file=file,
            line=mark.line + 1 if mark else None,
            column=mark.column + 1 if mark else None,
        ) from None
    except yaml.YAMLError as error:
        raise RecipeError(f"not valid YAML: {error}", file=file, line=1) from None
    if node is None:
        raise RecipeError("the recipe is empty", file=file, line=1)
    source.data = _build(node, (), source, frozenset())
    if not isinstance(source.data, dict):
        raise RecipeError("a recipe is a mapping of keys to values", file=file, line=1)
    return source


def _build(node: yaml.Node, key: Key, source: Source, parents: frozenset[int]) -> Any:
    source.places.setdefault(key, (node.start_mark.line + 1, node.start_mark.column + 1))
    if id(node) in parents:
        raise source.error("an anchor contains itself", key)
    inside = parents | {id(node)}
    if isinstance(node, yaml.MappingNode):
        return _mapping(node, key, source, inside)
    if isinstance(node, yaml.SequenceNode):
        return [_build(n, (*key, i), source, inside) for i, n in enumerate(node.value)]
    return _scalar(node, key, source)


def _mapping(node: yaml.MappingNode, key: Key, source: Source, inside: frozenset[int]) -> Any:
    result: dict[str, Any] = {}
    for name_node, value_node in node.value:
        if not isinstance(name_node, yaml.ScalarNode):
            raise source.error("keys are plain words", key)
        name = name_node.value
        path = (*key, name)
        doubled = name in result
        source.places[path] = (name_node.start_mark.line + 1, name_node.start_mark.column + 1)
        if doubled:
            raise source.error("this key is given twice", path)
        result[name] = _build(value_node, path, source, inside)
    return result


def _scalar(node: yaml.Node, key: Key, source: Source) -> Any:
    text: str = node.value

    def substitute(match: re.Match[str]) -> str:
        name, default = match.group(1), match.group(2)
        value = os.environ.get(name, default)
        if value is None:
            raise source.error(
                f"environment variable {name} is not set", key, f"set it, or write ${{{name}:-...}}"
            )
        return value

    replaced = _VARIABLE.sub(substitute, text)
    plain = getattr(node, "style", None) is None
    if replaced != text and plain:
        return yaml.safe_load(replaced) if replaced.strip() else replaced
    if replaced != text:
        return replaced
    try:
        return yaml.SafeLoader("").construct_object(node)
    except (yaml.YAMLError, ValueError):
        raise source.error(f"{text!r} is not a value of type {node.tag!r}", key) from None
