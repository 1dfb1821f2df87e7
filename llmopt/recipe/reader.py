"""YAML to plain data, remembering where everything stood; what would never end is refused."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml
from yaml.composer import Composer
from yaml.parser import Parser
from yaml.reader import Reader
from yaml.resolver import Resolver
from yaml.scanner import Scanner

from llmopt.errors import RecipeError, RequestError
from llmopt.recipe.source import Key, Source
from llmopt.specs.base import shortened

#: more than any recipe needs, and read within a second
MAX_BYTES = 500_000
_MAX_DEPTH, _MAX_VALUES, _MAX_TEXT, _MAX_DIGITS = 32, 50_000, 10_000, 40

_VARIABLE = re.compile(r"\$\{(\w+)(?::-([^}]*))?\}")
_TAG = "tag:yaml.org,2002:"
_KINDS = {"null": "null", "bool": "true or false", "int": "integer", "float": "number"}
_EXPONENT = re.compile(r"[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+")
_PLAIN: Any = yaml.SafeLoader("")


class _Slow(Reader, Scanner, Parser):
    """What libyaml's parser does, where that is not installed."""

    def __init__(self, text: str) -> None:
        Reader.__init__(self, text)
        Scanner.__init__(self)
        Parser.__init__(self)


_Events: Any = getattr(yaml.cyaml, "CParser", _Slow) if yaml.__with_libyaml__ else _Slow


class _Nodes(Composer, _Events, Resolver):  # type: ignore[misc]
    """YAML nodes, by libyaml where it is there; too deep ones are an error."""

    def __init__(self, text: str) -> None:
        _Events.__init__(self, text)
        Composer.__init__(self)
        Resolver.__init__(self)
        self._depth = 0

    def compose_node(self, parent: Any, index: Any) -> Any:
        self._depth += 1
        if self._depth > _MAX_DEPTH:
            raise yaml.MarkedYAMLError(
                problem=f"nested more than {_MAX_DEPTH} deep",
                problem_mark=self.peek_event().start_mark,
            )
        node = super().compose_node(parent, index)
        self._depth -= 1
        return node


def read_text(path: Path) -> str:
    """The text of a recipe file; RequestError for what is no file of a recipe's size."""
    if not path.is_file():
        what = "a folder" if path.is_dir() else "not a regular file"
        raise RequestError(f"{path} is {what}; a recipe is a YAML file")
    try:
        with path.open("rb") as file:
            content = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise RequestError(f"{path} cannot be read: {error.strerror}") from None
    if len(content) > MAX_BYTES:
        raise RequestError(f"{path} is no recipe: it has more than {MAX_BYTES:,} bytes")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise RecipeError("the recipe is not UTF-8 text", file=str(path), line=line) from None


def parse(text: str, file: str) -> Source:
    """Parse YAML.

    Raises RecipeError for bad syntax, doubled keys, undefined variables, and for what is too deep
    or, its aliases written out, too long.
    """
    source = Source(file)
    node = compose(text, file)
    if node is None:
        raise RecipeError("the recipe is empty", file=file, line=1)
    source.data = _Builder(source).build(node, (), ())
    if not isinstance(source.data, dict):
        raise RecipeError("a recipe is a mapping of keys to values", file=file, line=1)
    return source


def parse_value(text: str, file: str) -> Any:
    """One YAML value, held to the same limits as a recipe."""
    if len(text) > MAX_BYTES:
        raise RecipeError(f"more than {MAX_BYTES:,} characters", file=file)
    node = compose(text, file)
    return None if node is None else _Builder(Source(file)).build(node, (), ())


def compose(text: str, file: str) -> yaml.Node | None:
    """The nodes of one YAML document; RecipeError for bad syntax and for what is too deep.

    What aliases stand for is not written out: a node that has several is there once.
    """
    if (odd := Reader.NON_PRINTABLE.search(text)) is not None:
        start, message = odd.start(), f"not valid YAML: the character {odd.group()!r}"
        line, column = text.count("\n", 0, start) + 1, start - text.rfind("\n", 0, start)
        raise RecipeError(message, file=file, line=line, column=column)
    try:
        node: yaml.Node | None = _Nodes(text).get_single_node()
    except yaml.MarkedYAMLError as error:
        raise _not_yaml(error, file) from None
    except yaml.YAMLError as error:
        raise RecipeError(f"not valid YAML: {error}", file=file, line=1) from None
    return node


def _not_yaml(error: yaml.MarkedYAMLError, file: str) -> RecipeError:
    mark, problem = error.problem_mark or error.context_mark, error.problem or error.context or ""
    hint = None
    if "another document" in problem:
        problem, hint = "a recipe is one document", "take out the line ---"
    elif "cannot start any token" in problem:
        hint = "indent with spaces, and put text that begins with a special character in quotes"
    return RecipeError(
        f"not valid YAML: {problem}",
        file=file,
        line=mark.line + 1 if mark else None,
        column=mark.column + 1 if mark else None,
        hint=hint,
    )


class _Builder:
    """Plain data from nodes; the places of keys go into a source."""

    def __init__(self, source: Source) -> None:
        self._source, self._values = source, 0

    def build(self, node: yaml.Node, key: Key, parents: tuple[int, ...]) -> Any:
        self._source.places.setdefault(key, (node.start_mark.line + 1, node.start_mark.column + 1))
        self._count(node, key, parents)
        inside = (*parents, id(node))
        if isinstance(node, yaml.MappingNode):
            return self._mapping(node, key, inside)
        if isinstance(node, yaml.SequenceNode):
            return [self.build(n, (*key, i), inside) for i, n in enumerate(node.value)]
        assert isinstance(node, yaml.ScalarNode)
        return self._scalar(node, key)

    def _count(self, node: yaml.Node, key: Key, parents: tuple[int, ...]) -> None:
        self._values += 1
        if id(node) in parents:
            raise self._source.error("an anchor contains itself", key)
        if len(parents) >= _MAX_DEPTH:
            raise self._source.error(f"nested more than {_MAX_DEPTH} deep", key)
        if self._values > _MAX_VALUES:
            raise self._source.error(
                f"more than {_MAX_VALUES:,} values, its aliases written out", key
            )
        if not isinstance(node, yaml.ScalarNode) and node.tag not in (f"{_TAG}map", f"{_TAG}seq"):
            raise self._no_type(node, key)

    def _mapping(
        self, node: yaml.MappingNode, key: Key, inside: tuple[int, ...]
    ) -> dict[str, object]:
        result: dict[str, object] = {}
        for name, value in self._pairs(node, key, inside):
            path = (*key, name.value)
            self._source.places[path] = name.start_mark.line + 1, name.start_mark.column + 1
            result[name.value] = self.build(value, path, inside)
        return result

    def _pairs(
        self, node: yaml.MappingNode, key: Key, inside: tuple[int, ...]
    ) -> list[tuple[yaml.ScalarNode, yaml.Node]]:
        """A mapping's keys and values, those that `<<` merges into it last; its own win."""
        found: dict[str, tuple[yaml.ScalarNode, yaml.Node]] = {}
        merged: list[tuple[yaml.ScalarNode, yaml.Node]] = []
        self._values += len(node.value)
        for name, value in node.value:
            if not isinstance(name, yaml.ScalarNode):
                raise self._source.error("keys are plain words", key)
            if name.tag == f"{_TAG}merge":
                merged += self._merged(value, key, inside)
                continue
            if name.value in found:
                path = (*key, name.value)
                self._source.places[path] = name.start_mark.line + 1, name.start_mark.column + 1
                raise self._source.error("this key is given twice", path)
            found[name.value] = (name, value)
        for name, value in merged:
            found.setdefault(name.value, (name, value))
        return list(found.values())

    def _merged(
        self, node: yaml.Node, key: Key, inside: tuple[int, ...]
    ) -> Iterator[tuple[yaml.ScalarNode, yaml.Node]]:
        for each in node.value if isinstance(node, yaml.SequenceNode) else [node]:
            if not isinstance(each, yaml.MappingNode):
                raise self._source.error(
                    "<< merges a mapping, or a list of mappings, into this one", key, "<<: *anchor"
                )
            self._count(each, key, inside)
            yield from self._pairs(each, key, (*inside, id(each)))

    def _scalar(self, node: yaml.ScalarNode, key: Key) -> Any:
        if len(node.value) > _MAX_TEXT:
            raise self._too_long(key)
        text, tag = self._substituted(node.value, key), node.tag
        if text != node.value and not node.style and text.strip():
            text = text.strip()
            tag = _PLAIN.resolve(yaml.ScalarNode, text, (True, False))
        kind = tag.removeprefix(_TAG)
        if kind == "str" and not node.style and _EXPONENT.fullmatch(text):
            kind = "float"  # as in YAML 1.2
        if kind in ("str", "timestamp", "value"):
            return text
        if kind not in ("null", "bool", "int", "float"):
            raise self._no_type(node, key)
        try:
            if len(text) > _MAX_DIGITS:
                raise ValueError
            construct = getattr(_PLAIN, f"construct_yaml_{kind}")
            return construct(yaml.ScalarNode(tag, text))
        except (ValueError, KeyError, IndexError):
            raise self._source.error(f"{shortened(text)!r} is no {_KINDS[kind]}", key) from None

    def _substituted(self, text: str, key: Key) -> str:
        """The text with the values of the environment variables that it names."""
        length = len(text)

        def substitute(match: re.Match[str]) -> str:
            nonlocal length
            name, default = match.group(1), match.group(2)
            value = os.environ.get(name, default)
            if value is None:
                raise self._source.error(
                    f"environment variable {shortened(name)} is not set",
                    key,
                    f"set it, or write ${{{shortened(name)}:-...}}",
                )
            length += len(value)
            if length > _MAX_TEXT:
                raise self._too_long(key)
            return value

        return _VARIABLE.sub(substitute, text)

    def _no_type(self, node: yaml.Node, key: Key) -> RecipeError:
        tag = shortened(node.tag.replace(_TAG, "!!", 1))
        return self._source.error(f"a recipe holds no values of type {tag}", key)

    def _too_long(self, key: Key) -> RecipeError:
        return self._source.error(f"text of more than {_MAX_TEXT:,} characters", key)
