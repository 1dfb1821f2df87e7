"""What pydantic finds wrong with a recipe, as sentences with their places."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, get_args

from pydantic import BaseModel

from llmopt.errors import RecipeError
from llmopt.recipe.models import recipe_class, step_class
from llmopt.recipe.source import Key, Source, dotted
from llmopt.specs import GRIDS, nearest, suggestion
from llmopt.specs.base import shortened

#: options of the command line that recipes say otherwise
_OPTIONS = {
    "bits": "grid: {0} (bits is short for it on the command line alone)",
    "asymmetric": "symmetric: false",
    "skip": 'overrides: [{{match: "*.down_proj", skip: true}}]',
    "calibration": "data.calibration.source, beside steps",
    "evaluation": "data.evaluation.source, beside steps",
    "sequences": "data.calibration.sequences, beside steps",
    "length": "data.calibration.length, beside steps",
}


#: what pydantic says in terms of Python
_SAID = {
    "model_type": "input should be a mapping of keys to values",
    "dict_type": "input should be a mapping of keys to values",
    "list_type": "input should be a list",
    "string_type": "input should be text",
    "too_short": "the list is empty",
}


def all_of(source: Source, errors: Iterable[Any]) -> Iterator[RecipeError]:
    """A sentence for each of pydantic's error records, in the order of their places."""
    errors = sorted(errors, key=lambda error: source.place(error["loc"])[0] or 0)
    typos = [error["loc"] for error in errors if error["type"] == "extra_forbidden"]
    for error in errors:
        if not _follows(error, typos):
            yield explain(source, error, source.existing(source.given_at(error["loc"])))


def _follows(error: Any, typos: list[Key]) -> bool:
    """Whether something is only missing because its name is misspelt."""
    missing, around = [str(part) for part in error["loc"][-1:]], error["loc"][:-1]
    if error["type"] == "value_error" and "has none" in error["msg"]:
        missing, around = step_class().verbs(), error["loc"]
    elif error["type"] != "missing":
        return False
    return any(typo[:-1] == around and nearest(str(typo[-1]), missing) for typo in typos)


def explain(source: Source, mistake: Any, key: Key) -> RecipeError:
    """One of pydantic's error records as a sentence about what stands at `key`."""
    kind, location = mistake["type"], mistake["loc"]
    if kind == "extra_forbidden":
        return source.error("unknown key", location, _meant(source, location))
    if kind == "missing":
        return source.error(f"{dotted(location)} is required", key)
    if kind == "value_error":
        return source.error(str(mistake["ctx"]["error"]), key)
    if kind == "refused":
        return source.error(mistake["ctx"]["message"], key, mistake["ctx"]["hint"])
    if kind == "literal_error":
        return _not_a_choice(source, mistake, key)
    given, hint = mistake.get("input"), None
    message = _SAID.get(kind) or mistake["msg"][0].lower() + mistake["msg"][1:]
    if isinstance(given, (str, int, float, bool)):
        message += f", not {shortened(repr(given))}"
        if isinstance(given, str) and kind in ("int_type", "float_type") and _is_number(given):
            hint = "write it without quotes"
    return source.error(message, key, hint)


def _not_a_choice(source: Source, mistake: Any, key: Key) -> RecipeError:
    given, expected = mistake.get("input"), mistake["ctx"]["expected"]
    choices = [c.strip(" '") for c in expected.replace(" or ", ", ").split(",")]
    message, hint = f"input should be {expected}, not {shortened(repr(given))}", None
    if isinstance(given, str):
        if given == expected:  # Literal[1], and text
            return source.error(
                f"wants the number {expected}, not text", key, "take out the quotes"
            )
        match = nearest(given, choices)
        hint = f"did you mean {match!r}?" if match else None
    return source.error(message, key, hint)


def _meant(source: Source, loc: Key) -> str:
    """What somebody who wrote an unknown key may have meant."""
    name = str(loc[-1])
    if loc[:1] == ("steps",) and len(loc) == 4 and name in _OPTIONS:
        return _OPTIONS[name].format(_grid_of(_value_at(source.data, loc)))
    return suggestion(name, _field_names(_model_at(loc[:-1])))


def _grid_of(bits: Any) -> str:
    """The integer grid of so many bits; all of them where there is none."""
    grid = f"int{bits}"
    return grid if grid in GRIDS else ", ".join(name for name in GRIDS if name.startswith("int"))


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _value_at(value: Any, key: Key) -> Any:
    for part in key:
        value = value[part]
    return value


def _model_at(loc: Key) -> type[BaseModel]:
    """The pydantic model that validates what stands at `loc`."""
    model: type[BaseModel] = recipe_class()
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
