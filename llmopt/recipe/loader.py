"""Load, override and validate recipes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from llmopt.errors import RequestError
from llmopt.recipe.mistakes import validated
from llmopt.recipe.models import Recipe, recipe_class
from llmopt.recipe.overrides import apply
from llmopt.recipe.reader import parse, read_text
from llmopt.recipe.source import COMMAND_LINE, CommandOption, Source
from llmopt.specs import suggestion
from llmopt.specs.base import shortened

SHIPPED = (Path(__file__).parents[1] / "shipped_recipes", Path(__file__).parents[2] / "recipes")


def shipped_recipes() -> dict[str, Path]:
    """The recipes that come with llmopt, by name."""
    folder = next((f for f in SHIPPED if f.is_dir()), None)
    return {p.stem: p for p in sorted(folder.glob("*.yaml"))} if folder else {}


def locate(recipe: str | Path) -> Path:
    """The file of a recipe given by path or by a shipped recipe's name, else RequestError."""
    path, known = Path(recipe), shipped_recipes()
    there = _is_there(path)
    if str(recipe) in known and not (there and path.is_file()):
        return known[str(recipe)]
    if there:
        return path
    raise RequestError(
        f"no recipe file or shipped recipe {shortened(str(recipe))!r}",
        hint=suggestion(str(recipe), known) if known else None,
    )


def _is_there(path: Path) -> bool:
    try:
        path.lstat()
    except (OSError, ValueError):
        return False
    return True


def load(recipe: str | Path, overrides: Sequence[str] = ()) -> tuple[Recipe, Source]:
    """Read a recipe file, or a shipped recipe by name, and validate it.

    `overrides` are `a.b=value` strings; steps are addressed by index or by id. Raises
    RecipeError with file, line, column, key path and the nearest valid name.
    """
    path = locate(recipe)
    source = parse(read_text(path), str(path))
    for override in overrides:
        apply(override, source)
    return validated(recipe_class(), source.data, source), source


def from_data(
    data: Mapping[str, object], flags: Mapping[str, CommandOption] | None = None
) -> tuple[Recipe, Source]:
    """Validate a recipe that the command line built, its keys from `flags` (see Source)."""
    source = Source(COMMAND_LINE, data, flags=flags or {})
    return validated(recipe_class(), source.data, source), source
