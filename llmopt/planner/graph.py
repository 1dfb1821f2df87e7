"""How the steps of a recipe hang together."""

from __future__ import annotations

import graphlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from llmopt.errors import Mistakes
from llmopt.recipe import Source
from llmopt.recipe.matrix import Expanded
from llmopt.recipe.source import COMMAND_LINE, Key
from llmopt.specs import suggestion
from llmopt.specs.base import shortened
from llmopt.specs.kinds import kind_of_file, model_files
from llmopt.step import MODEL


@dataclass(frozen=True)
class Names:
    """What the names in a recipe stand for: ids as written, and models from outside as typed.

    `ids` has for each what it became: one name, or the members of a matrix.
    """

    ids: Mapping[str, Sequence[str]]
    outside: frozenset[str]

    def members(self, name: str, key: Key, source: Source) -> Sequence[str]:
        """What `name` stands for; RecipeError about what stands at `key` where that is nothing."""
        if name == MODEL:
            return [MODEL]
        if name in self.ids:
            return self.ids[name]
        known = {member for members in self.ids.values() for member in members}
        if name in known:
            return [name]
        if source.file == COMMAND_LINE:
            files = " or ".join(model_files())
            raise source.error(f"there is no model folder or {files} file {shortened(name)}", key)
        hint = suggestion(name, {MODEL, *self.ids, *known})
        raise source.error(f"no step is called {shortened(name)!r}", key, hint)


def outside(expanded: list[Expanded], ids: dict[str, list[str]]) -> dict[str, str]:
    """Models that steps name instead of steps: as typed -> a short name of its own."""
    found: dict[str, str] = {}
    taken = {MODEL, *(item.step.id for item in expanded)}
    for item in expanded:
        for role, _, typed in item.step.settings.inputs():
            path = Path(typed)
            known = typed in ids or typed in taken or typed in found
            if known or not role.outside or not _is_model(path):
                continue
            stem = path.resolve().name if path.is_dir() else path.name
            name, number = stem, 2
            while name in taken:
                name, number = f"{stem}-{number}", number + 1
            taken.add(name)
            found[typed] = name
    return found


def _is_model(path: Path) -> bool:
    try:
        of_file = kind_of_file(path) is not None and path.is_file()
        return path == Path("demo") or path.is_dir() or of_file
    except OSError:  # a name that no file can have
        return False


def ordered(expanded: list[Expanded], names: Names, source: Source) -> list[Expanded]:
    """Steps sorted so that parents come first, otherwise as written."""
    by_id = {item.step.id: item for item in expanded}
    graph, mistakes = {}, Mistakes()
    for item in expanded:
        parents: list[str] = []
        for key, name in named(item):
            with mistakes.gathered():
                parents += names.members(name, key, source)
        graph[item.step.id] = [p for p in parents if p != MODEL and p not in names.outside]
    mistakes.raise_any()
    try:
        order = list(graphlib.TopologicalSorter(graph).static_order())
    except graphlib.CycleError as error:
        cycle = error.args[1]
        first = by_id[cycle[0]]
        raise source.error(
            f"steps wait for each other: {' -> '.join(reversed(cycle))}",
            next(
                key for key, name in named(first) if set(cycle) & set(names.ids.get(name, [name]))
            ),
        ) from None
    return [by_id[name] for name in order]


def named(item: Expanded) -> Iterator[tuple[Key, str]]:
    """The names of what a step reads, each with its place in the recipe."""
    for _, field, name in item.step.settings.inputs():
        yield (*item.key, item.step.verb, field), name
