"""How the steps of a recipe hang together."""

from __future__ import annotations

import graphlib
from pathlib import Path

from llmopt.errors import Mistakes
from llmopt.planner.steps import MODEL
from llmopt.recipe import Source
from llmopt.recipe.matrix import Expanded
from llmopt.recipe.source import COMMAND_LINE
from llmopt.specs import suggestion
from llmopt.specs.base import shortened
from llmopt.specs.kinds import kind_of_file, model_files
from llmopt.verbs.bench.settings import BenchSettings


def outside(expanded: list[Expanded], ids: dict[str, list[str]]) -> dict[str, str]:
    """Models that bench steps name instead of steps: as typed -> a short name of its own."""
    found: dict[str, str] = {}
    taken = {MODEL, *(item.step.id for item in expanded)}
    for item in expanded:
        settings = item.step.settings
        for typed in settings.from_ if isinstance(settings, BenchSettings) else ():
            path = Path(typed)
            if typed in ids or typed in taken or typed in found or not _is_model(path):
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


def ordered(
    expanded: list[Expanded], ids: dict[str, list[str]], source: Source, outside: set[str]
) -> list[Expanded]:
    """Steps sorted so that parents come first, otherwise as written."""
    by_id = {item.step.id: item for item in expanded}
    graph, mistakes = {}, Mistakes()
    for item in expanded:
        parents: list[str] = []
        for name in named_parents(item):
            with mistakes.gathered():
                parents += members(name, ids, item, source)
        graph[item.step.id] = [p for p in parents if p != MODEL and p not in outside]
    mistakes.raise_any()
    try:
        order = list(graphlib.TopologicalSorter(graph).static_order())
    except graphlib.CycleError as error:
        cycle = error.args[1]
        raise source.error(
            f"steps wait for each other: {' -> '.join(reversed(cycle))}",
            (*by_id[cycle[0]].key, by_id[cycle[0]].step.verb, "from"),
        ) from None
    return [by_id[name] for name in order]


def members(name: str, ids: dict[str, list[str]], item: Expanded, source: Source) -> list[str]:
    """The steps that `name` stands for: itself, a matrix's members, or the model."""
    if name == MODEL:
        return [MODEL]
    if name in ids:
        return ids[name]
    known = {member for members in ids.values() for member in members}
    if name in known:
        return [name]
    settings = item.step.settings
    against = isinstance(settings, BenchSettings) and name == settings.against
    key = (*item.key, item.step.verb, "against" if against else "from")
    if source.file == COMMAND_LINE:
        files = " or ".join(model_files())
        raise source.error(f"there is no model folder or {files} file {shortened(name)}", key)
    hint = suggestion(name, {MODEL, *ids, *known})
    raise source.error(f"no step is called {shortened(name)!r}", key, hint)


def named_parents(item: Expanded) -> list[str]:
    """The steps that a step names as what it is made from, or measures."""
    settings = item.step.settings
    return [name for _, _, name in settings.inputs()]
