"""The flags that set a recipe's keys, made from the settings of a verb and the recipe's own keys.

What a flag is called, means and takes stands beside the field that it sets (recipe/fields.py). A
command builds its one-step recipe from the flags that were typed, and errors name those.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from llmopt.errors import Mistakes, RecipeError, RequestError
from llmopt.recipe.fields import Choice, Flag, Input, Short
from llmopt.recipe.models import RESERVED_IDS, Recipe, settings_of
from llmopt.recipe.source import Option

Kind = Literal["value", "list", "mapping", "switch"]

#: keys of the recipe beside its step that commands have flags for, where they read such text
SEED, REVISION = {"seed": Flag(help="Seed of everything random.")}, {"revision": Flag()}
CALIBRATION = {
    "data.calibration.source": Flag("--calibration", metavar="TEXT"),
    "data.calibration.field": Flag(),
    "data.calibration.sequences": Flag(),
    "data.calibration.length": Flag(),
    "data.evaluation.source": Flag("--evaluation", metavar="TEXT"),
    "data.evaluation.windows": Flag(),
}
EVALUATION = {
    "data.evaluation.source": Flag("--evaluation", metavar="TEXT"),
    "data.evaluation.field": Flag(),
    "data.evaluation.windows": Flag(),
    "data.evaluation.length": Flag(),
}


@dataclass(frozen=True, kw_only=True)
class KeyFlag:
    """A flag of a command.

    `key` is the one that it sets, dotted and without the steps ("quantize.grid"); `off` the other
    form of a switch. `parse` makes an item of a list, a mapping of one key, or the value; it raises
    RequestError. `role` is that of the input which it names. Those of lists and mappings repeat.
    """

    key: str
    name: str
    kind: Kind
    help: str
    metavar: str
    parse: Callable[[str], object]
    off: str | None = None
    choices: tuple[str, ...] = ()
    role: str | None = None
    required: bool = False

    @property
    def default(self) -> object:
        """What a command's parameter is where nothing was typed."""
        return inspect.Parameter.empty if self.required else None

    def read(self, typed: object, mistakes: Mistakes) -> object:
        """The value in a recipe of what was typed; `mistakes` gets what is none."""
        if self.kind == "switch":
            return typed
        texts = [typed] if isinstance(typed, str) else list(typed)  # type: ignore[call-overload]
        if self.kind != "value" and texts == ["none"]:
            return [] if self.kind == "list" else {}
        items = []
        for text in texts:
            with mistakes.gathered():
                items.append(self._parsed(text))
        if self.kind == "value":
            return items[0] if items else None
        return items if self.kind == "list" else self._merged(items, mistakes)

    def _parsed(self, text: str) -> Any:
        try:
            return self.parse(text)
        except RequestError as error:
            raise RecipeError(error.message, where=self.name, hint=error.hint) from None

    def _merged(self, entries: Sequence[Mapping[str, object]], mistakes: Mistakes) -> object:
        merged: dict[str, object] = {}
        for entry in entries:
            if twice := merged.keys() & entry.keys():
                message = f"{', '.join(twice)} is given twice"
                mistakes.add([RecipeError(message, where=self.name)])
            merged |= entry
        return merged

    def option(self, typed: object) -> Option:
        """How errors and hints call it: a switch by what was typed, or by what changes it."""
        if self.kind != "switch":
            return Option(self.name)
        off = self.off is not None if typed is None else typed is False
        return Option(self.off, False) if off and self.off else Option(self.name, True)


def verb_flags(verb: str) -> list[KeyFlag]:
    """The flags of a verb's settings, but for the input `model`: that is an argument."""
    flags = [
        flag
        for name, info in settings_of(verb).model_fields.items()
        for flag in _flags(f"{verb}.{info.alias or name}", info, _of(info, Flag) or Flag())
        if flag.role != "model"
    ]
    return sorted(flags, key=lambda flag: not flag.required)


def recipe_flags(keys: Mapping[str, Flag]) -> list[KeyFlag]:
    """The flags of the recipe's own keys, as CALIBRATION names them."""
    found: list[KeyFlag] = []
    for key, said in keys.items():
        info, (*_, part, _) = _field(key), ("", *key.split("."))
        words = f"{part.title()}: {info.description}".removeprefix(": ")
        found += _flags(key, info, replace(said, help=said.help or _help(words, info)))
    return found


def _field(key: str) -> FieldInfo:
    """The field of the recipe at a dotted key."""
    model: type[BaseModel] = Recipe
    *around, last = key.split(".")
    for name in around:
        model = model.model_fields[name].annotation  # type: ignore[assignment]
    return model.model_fields[last]


def _flags(key: str, info: FieldInfo, said: Flag) -> Iterator[KeyFlag]:
    """The flag of a field, and the shorter ones beside it."""
    kind, types = _kind(info), _leaves(info.annotation)
    role = _of(info, Input)
    name = said.name or f"--{key.rpartition('.')[2].replace('_', '-')}"
    off = said.off or (f"--no-{name[2:]}" if kind == "switch" and info.default is True else None)
    yield KeyFlag(
        key=key,
        name=name,
        kind=kind,
        help=said.help or _help(info.description or "", info),
        metavar=said.metavar or _metavar(types),
        parse=said.parse or (as_path if role else _reader(types)),
        off=off,
        choices=tuple(_choices(info, shown=True)),
        role=role and role.role,
        required=info.is_required(),
    )
    for short in (each for each in info.metadata if isinstance(each, Short)):
        yield KeyFlag(
            key=key,
            name=short.name,
            kind="list" if kind == "list" else "value",
            help=short.help or "",
            metavar=short.metavar or "TEXT",
            parse=short.parse,
        )


def _of(info: FieldInfo, kind: type[Any]) -> Any:
    return next((each for each in info.metadata if isinstance(each, kind)), None)


def _kind(info: FieldInfo) -> Kind:
    outer = {get_origin(each) or each for each in _alternatives(info.annotation)}
    if bool in outer:
        return "switch"
    return "list" if list in outer else "mapping" if dict in outer else "value"


def _alternatives(annotation: Any) -> Iterator[Any]:
    """What stands between the bars of a type, without Annotated."""
    if hasattr(annotation, "__metadata__"):
        yield from _alternatives(annotation.__origin__)
    elif isinstance(annotation, type) or get_origin(annotation) in (list, dict, Literal):
        yield annotation
    else:
        for each in get_args(annotation):
            yield from _alternatives(each)


def _leaves(annotation: Any) -> set[Any]:
    """The plain types in a type, those of a list's items too."""
    found = set()
    for each in _alternatives(annotation):
        inner = get_args(each) if get_origin(each) in (list, dict) else ()
        found |= set().union(*map(_leaves, inner)) if inner else {each}
    return found


def _choices(part: Any, *, shown: bool) -> list[str]:
    """What tables and types offer for a field or the items of a list; `shown`: in all spellings."""
    if isinstance(part, Choice):
        return list(part.shown if shown else part.names())
    if get_origin(part) is Literal:
        return list(map(str, get_args(part)))
    inner = [*getattr(part, "__metadata__", getattr(part, "metadata", ()))]
    inner += get_args(part) or [getattr(part, "annotation", None)]
    found = [each for one in inner if one is not part for each in _choices(one, shown=shown)]
    return list(dict.fromkeys(found))


def _metavar(types: set[Any]) -> str:
    return "NUMBER" if types & {int, float} else "TEXT"


def _reader(types: set[Any]) -> Callable[[str], object]:
    """Text as a number where the field is one; what is none is for the recipe to refuse."""

    def read(text: str) -> object:
        for number in (int, float) if types & {int, float} else ():
            try:
                return number(text)
            except ValueError:
                continue
        return text

    return read


def as_path(name: str) -> str:
    """A folder or file here as no step is called, whatever its name."""
    here = name != "demo" and not Path(name).is_absolute() and Path(name).exists()
    return f"./{name}" if here else name


def _help(said: str, info: FieldInfo) -> str:
    """What a field means, what it may be, and what it is where nothing is typed."""
    word = said.partition(" ")[0].rstrip(",")
    said = said[:1].upper() + said[1:] if word.isalpha() else said
    notes = []
    if choices := _choices(info, shown=False):
        notes.append(f"one of: {', '.join(choices)}")
    elif keys := _keys(info):
        notes.append(f"keys: {', '.join(keys)}")
    default = info.get_default(call_default_factory=True)
    if isinstance(default, (str, int, float)) and default != "" and not isinstance(default, bool):
        notes.append(f"default: {default}")
    if isinstance(default, list) and default:
        notes.append(f"default: {' '.join(default)}")
    return f"{said}. [{'; '.join(notes)}]" if notes else f"{said}."


def _keys(info: FieldInfo) -> list[str]:
    """The keys of a list's items beside the pattern that they match."""
    models = [each for each in _leaves(info.annotation) if issubclass(each, BaseModel)]
    return [key for model in models for key in model.model_fields if key != "match"]


Typed = Mapping[KeyFlag, object]


def named(flags: Sequence[KeyFlag], typed: Typed) -> dict[str, Option]:
    """Keys of a command's recipe -> their flags; of two for one key, the one that was typed."""
    found = {"model": Option("MODEL")}
    for flag in flags:
        if flag.key not in found or flag in typed:
            found[flag.key] = flag.option(typed.get(flag))
    return found


def recipe_of(verb: str, model: str, typed: Typed, out: Path, mistakes: Mistakes) -> dict[str, Any]:
    """The one-step recipe that a model and the flags that were typed stand for."""
    name = re.sub(r"[^A-Za-z0-9_.-]", "_", out.absolute().name).lstrip("._-")[:80] or verb
    values = _values(typed, mistakes)
    if "data.evaluation.source" in values and "data.calibration.field" in values:
        values.setdefault("data.evaluation.field", values["data.calibration.field"])
    recipe: dict[str, Any] = {"version": 1, "name": name, "model": model}
    settings: dict[str, Any] = {}
    for key, value in values.items():
        *around, last = key.split(".")
        target = recipe
        for part in around:
            target = settings if part == verb else target.setdefault(part, {})
        target[last] = value
    step = f"{verb}-{name}" if name in {*RESERVED_IDS, "demo"} else name
    return recipe | {"steps": [{"id": step, verb: settings}]}


def _values(typed: Typed, mistakes: Mistakes) -> dict[str, Any]:
    """Keys -> what was typed for them; several flags of a list add up, of a value they clash."""
    values: dict[str, Any] = {}
    first: dict[str, KeyFlag] = {}
    for flag, text in typed.items():
        value = flag.read(text, mistakes)
        if value is None:  # it is among the mistakes
            continue
        if flag.key not in first:
            values[flag.key], first[flag.key] = value, flag
        elif flag.kind == "list":
            values[flag.key] = values[flag.key] + value
        else:
            message = f"says the same thing as {first[flag.key].name}: give one of them"
            mistakes.add([RecipeError(message, where=flag.name)])
    return values
