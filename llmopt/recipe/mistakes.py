"""What pydantic finds wrong with a recipe, as sentences with their places."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, TypeVar, get_origin

from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo

from llmopt.errors import Mistakes, RecipeError, RequestError
from llmopt.recipe.fields import Flag, Setting, Settings, Short, marks, models_in, settings_in
from llmopt.recipe.models import Data, recipe_class, step_class
from llmopt.recipe.source import Key, Source, dotted
from llmopt.specs import nearest, suggestion
from llmopt.specs.base import shortened

M = TypeVar("M", bound=BaseModel)
#: what pydantic says in terms of Python
_SAID = {
    "model_type": "input should be a mapping of keys to values",
    "dict_type": "input should be a mapping of keys to values",
    "list_type": "input should be a list",
    "string_type": "input should be text",
    "too_short": "the list is empty",
}


def validated(model: type[M], data: object, source: Source, place: Key = ()) -> M:
    """What stands at `place`, as `model`; RecipeError about its first mistake, with all others."""
    try:
        return model.model_validate(data)
    except ValidationError as error:
        found = [{**each, "loc": (*place, *each["loc"])} for each in error.errors()]
    (mistakes := Mistakes()).add(_all_of(source, found))
    mistakes.raise_any()
    raise AssertionError("a validation error without a mistake")


def _all_of(source: Source, errors: Iterable[Any]) -> Iterator[RecipeError]:
    """A sentence for each of pydantic's error records, in the order of their places."""
    placed = [{**error, "loc": _flat(error["loc"])} for error in errors]
    errors = sorted(placed, key=lambda error: source.place(source.given_at(error["loc"]))[0] or 0)
    typos = [error["loc"] for error in errors if error["type"] == "extra_forbidden"]
    for error in errors:
        if not _follows(error, typos):
            yield _explain(source, error, source.existing(source.given_at(error["loc"])))


def _follows(error: Any, typos: list[Key]) -> bool:
    """Whether something is only missing because its name is misspelt."""
    missing, around = [str(part) for part in error["loc"][-1:]], error["loc"][:-1]
    if error["type"] == "value_error" and "has none" in error["msg"]:
        missing, around = step_class().verbs(), error["loc"]
    elif error["type"] != "missing":
        return False
    return any(typo[:-1] == around and nearest(str(typo[-1]), missing) for typo in typos)


def _explain(source: Source, mistake: Any, key: Key) -> RecipeError:
    """One of pydantic's error records as a sentence about what stands at `key`."""
    kind, location = mistake["type"], mistake["loc"]
    if kind == "extra_forbidden":
        return _not_a_key(source, location)
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


def _not_a_key(source: Source, loc: Key) -> RecipeError:
    """What is wrong with a key that its place does not have."""
    name, known = str(loc[-1]), settings_in(_model_at(loc[:-1]))
    if name in known:
        return _of_another_choice(source, loc, known[name])
    given = source.value(loc)
    hint = _flag_of_verb(name, given, known) if loc[:1] == ("steps",) and len(loc) == 4 else None
    return source.error("unknown key", loc, hint or suggestion(name, known))


def _of_another_choice(source: Source, loc: Key, setting: Setting) -> RecipeError:
    """A setting that exists, but not where another one has the value that it has."""
    name, place, model = str(loc[-1]), loc[:-1], _model_at(loc[:-1])
    while issubclass(model, Settings) and (found := model.variant()) is not None:
        variant, chooser = found[1], (*place, found[1].chooser)
        chosen = source.value(chooser) or model.model_fields[variant.chooser].default
        if (meant := variant.meant(chosen)) is None:
            break
        chosen, inner = meant
        if name in (reads := settings_in(inner)):
            model = inner
            continue
        others = setting.when[variant.chooser]
        hint = f"{chosen} reads: {', '.join(sorted(reads))}"
        hint = hint if reads else f"{source.says(chooser, others[0])} has it"
        return source.error(f"{variant.said.format(chosen)} has no such setting", loc, hint)
    raise AssertionError(f"{dotted(loc)} is a setting")


def _flag_of_verb(name: str, given: object, known: Mapping[str, Setting]) -> str | None:
    """How a recipe says what a flag of this name does on the command line."""
    flag = f"--{name.replace('_', '-')}"
    for key, setting in known.items():
        many = get_origin(setting.info.annotation) is list
        for short in (each for each in marks(setting.info, Short) if each.name == flag):
            alone = f"({name} is short for it on the command line alone"
            try:
                value = short.parse(str(given))
            except RequestError as error:
                return f"{key} {alone}, and {error.message})"
            return f"{key}: {_written([value] if many else value)} {alone})"
        if any(each.off == flag for each in marks(setting.info, Flag)):
            return f"{key}: false"
    return _flag_of_text(flag)


def _flag_of_text(flag: str) -> str | None:
    """The key of the recipe's texts that a flag sets."""
    for key in Data.model_fields:
        for inner, setting in settings_in(_model_at(("data", key))).items():
            names = [each.name for each in marks(setting.info, Flag)] or [f"--{inner}"]
            if flag in names:
                return f"data.{key}.{inner}, beside steps"
    return None


def _written(value: object) -> str:
    """A value as YAML has it on one line."""
    if isinstance(value, dict):
        return f"{{{', '.join(f'{key}: {_written(each)}' for key, each in value.items())}}}"
    if isinstance(value, list):
        return f"[{', '.join(map(_written, value))}]"
    if isinstance(value, bool):
        return str(value).lower()
    text = str(value)
    return text if text.isalnum() else f'"{text}"'


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _flat(loc: Key) -> Key:
    """Where a mistake stands in the recipe: what holds the keys of a variant is no key."""
    models: list[type[BaseModel]] = [recipe_class()]
    found: Key = ()
    for part in loc:
        if inner := [each for model in models for each in _held_by(model, part)]:
            models = inner
            continue
        found = (*found, part)
        if not isinstance(part, int):
            infos = (_info(model, part) for model in models)
            models = [m for info in infos if info for m in models_in(info.annotation)]
    return found


def _held_by(model: type[BaseModel], part: str | int) -> Iterable[type[BaseModel]]:
    found = model.variant() if issubclass(model, Settings) else None
    return found[1].classes().values() if found and found[0] == part else ()


def _info(model: type[BaseModel], part: str) -> FieldInfo | None:
    named = (info for name, info in model.model_fields.items() if part in (name, info.alias))
    return next(named, None)


def _model_at(loc: Key) -> type[BaseModel]:
    """The class that validates what stands at `loc`."""
    model: type[BaseModel] = recipe_class()
    for part in loc:
        if not isinstance(part, int) and (setting := settings_in(model).get(part)):
            model = next(iter(models_in(setting.info.annotation)), model)
    return model
