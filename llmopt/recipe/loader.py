"""Load, override and validate recipes."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, get_args

from pydantic import BaseModel, ValidationError

from llmopt.errors import RecipeError, RequestError
from llmopt.recipe.models import Recipe
from llmopt.recipe.overrides import apply
from llmopt.recipe.reader import parse, read_text
from llmopt.recipe.source import Key, Source, dotted
from llmopt.specs import nearest, suggestion
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
    return validate(source), source


def from_data(data: dict[str, Any]) -> tuple[Recipe, Source]:
    """Validate a recipe that the command line built."""
    source = Source("<command line>", data)
    return validate(source), source


def validate(source: Source) -> Recipe:
    """The recipe in `source`, or a RecipeError about its first mistake."""
    try:
        return Recipe.model_validate(source.data)
    except ValidationError as error:
        raise _first_mistake(source, error.errors(include_url=False)) from None


def _first_mistake(source: Source, errors: list[Any]) -> RecipeError:
    # A step with a misspelt verb has no verb either: the typo is the message that helps.
    first = min(
        errors, key=lambda e: (e["type"] != "extra_forbidden", source.place(e["loc"])[0] or 0)
    )
    return explain(source, first, _existing(source, first["loc"]))


def explain(source: Source, mistake: Any, key: Key) -> RecipeError:
    """One of pydantic's error records as a sentence about what stands at `key`."""
    kind, location = mistake["type"], mistake["loc"]
    if kind == "extra_forbidden":
        known = _field_names(_model_at(location[:-1]))
        return source.error("unknown key", location, suggestion(str(location[-1]), known))
    if kind == "missing":
        return source.error(f"{dotted(location)} is required", key)
    if kind == "value_error":
        return source.error(str(mistake["ctx"]["error"]), key)
    given = mistake.get("input")
    shown = f", not {shortened(repr(given))}" if isinstance(given, (str, int, float, bool)) else ""
    hint = None
    if kind == "literal_error" and isinstance(given, str):
        hint = _literal_hint(given, mistake["ctx"]["expected"])
    message = mistake["msg"][0].lower() + mistake["msg"][1:]
    return source.error(f"{message}{shown}", key, hint)


def _literal_hint(given: str, expected: str) -> str | None:
    choices = [c.strip(" '") for c in expected.replace(" or ", ", ").split(",")]
    match = nearest(given, choices)
    return f"did you mean {match!r}?" if match else None


def _existing(source: Source, loc: Key) -> Key:
    """The longest part of a pydantic location that is a key path of the recipe."""
    value: Any = source.data
    key: Key = ()
    for part in loc:
        try:
            value = value[part]
        except (KeyError, IndexError, TypeError):
            break
        key = (*key, part)
    return key


def _model_at(loc: Key) -> type[BaseModel]:
    """The pydantic model that validates what stands at `loc`."""
    model: type[BaseModel] = Recipe
    for part in loc:
        if isinstance(part, int):
            continue
        for name, info in model.model_fields.items():
            if part in (name, info.alias):
                model = next(iter(_models_in(info.annotation)), model)
    return model


def _models_in(annotation: Any) -> Iterable[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for inner in get_args(annotation):
        yield from _models_in(inner)


def _field_names(model: type[BaseModel]) -> list[str]:
    return [info.alias or name for name, info in model.model_fields.items()]
