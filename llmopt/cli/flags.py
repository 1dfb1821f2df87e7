"""The flags that set a recipe's keys, made from the settings of a verb and the recipe's own keys.

What a flag is called, means and takes stands beside the field that it sets (recipe/fields.py). A
command builds its one-step recipe from the flags that were typed, and errors name those.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from llmopt.cli.kinds import Kind, choices_of, keys_of, kind_of, metavar_of, reader_of
from llmopt.errors import Mistakes, RecipeError, RequestError
from llmopt.recipe.fields import Flag, Input, Setting, Short, marks, settings_in
from llmopt.recipe.models import Recipe, settings_of
from llmopt.recipe.source import CommandOption

#: keys of the recipe beside its step that commands have flags for, where they read such text
CALIBRATION = (
    *(f"data.calibration.{key}" for key in ("source", "field", "sequences", "length")),
    *(f"data.evaluation.{key}" for key in ("source", "windows")),
)
#: keys of the recipe that every verb's command has flags for
COMMON = ("seed", "max_memory")
EVALUATION = tuple(f"data.evaluation.{key}" for key in ("source", "field", "windows", "length"))

#: what Typer makes of a flag that was typed: of a switch, of one that is given once, or many times
Value = bool | str | list[str]


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

    def read(self, typed: Value, mistakes: Mistakes) -> object:
        """The value in a recipe of what was typed; `mistakes` gets what is none."""
        if isinstance(typed, bool):
            return typed
        texts = [typed] if isinstance(typed, str) else typed
        if self.kind != "value" and texts == ["none"]:
            return [] if self.kind == "list" else {}
        items: list[object] = []
        for text in texts:
            with mistakes.gathered():
                items.append(self._parsed(text))
        if self.kind == "value":
            return items[0] if items else None
        return items if self.kind == "list" else self._merged(items, mistakes)

    def _parsed(self, text: str) -> object:
        try:
            return self.parse(text)
        except RequestError as error:
            raise RecipeError(error.message, where=self.name, hint=error.hint) from None

    def _merged(self, entries: Sequence[object], mistakes: Mistakes) -> object:
        merged: dict[object, object] = {}
        for entry in entries:
            if isinstance(entry, dict):
                for twice in merged.keys() & entry.keys():
                    mistakes.add([RecipeError(f"{twice} is given twice", where=self.name)])
                merged |= entry
        return merged

    def option(self, typed: Value | None) -> CommandOption:
        """How errors and hints call it: a switch by what was typed, or by what changes it."""
        if self.kind != "switch":
            return CommandOption(self.name)
        off = self.off is not None if typed is None else typed is False
        return (
            CommandOption(self.off, False) if off and self.off else CommandOption(self.name, True)
        )


def verb_flags(verb: str) -> list[KeyFlag]:
    """The flags of a verb's settings, but for the input `model`: that is an argument.

    Those of settings that follow from another one's value say with which.
    """
    settings = settings_in(settings_of(verb))
    flags = [
        flag
        for key, each in settings.items()
        for flag in _flags(f"{verb}.{key}", each.info, *_with(each, settings))
        if flag.role != "model"
    ]
    return sorted(flags, key=lambda flag: not flag.required)


def input_key(verb: str, role: str) -> str | None:
    """The setting that names the input of a role, unless it names the recipe's model by default."""
    for key, each in settings_in(settings_of(verb)).items():
        if any(mark.role == role for mark in marks(each.info, Input)):
            return None if each.info.default == "model" else key
    return None


def _with(each: Setting, settings: Mapping[str, Setting]) -> Iterator[str]:
    """`only with --method gptq`, where a setting does not go with all values of another one."""
    for chooser, values in each.when.items():
        known = choices_of(settings[chooser].info, shown=False)
        having = [value for value in known if value in values]
        lacking = [value for value in known if value not in values]
        name = _spelled(chooser, settings[chooser].info)
        if lacking:
            few = len(lacking) < len(having)
            yield f"{'not' if few else 'only'} with {name} {', '.join(lacking if few else having)}"


def recipe_flags(keys: Iterable[str]) -> list[KeyFlag]:
    """The flags of the recipe's own keys, as CALIBRATION names them."""
    found: list[KeyFlag] = []
    for key in keys:
        info, (*_, part, _) = _field(key), ("", *key.split("."))
        said, words = _said(info), f"{part.title()}: {info.description}".removeprefix(": ")
        found += _flags(key, info, said=replace(said, help=said.help or _help(words, info)))
    return found


def _field(key: str) -> FieldInfo:
    """The field of the recipe at a dotted key."""
    model: type[BaseModel] = Recipe
    *around, last = key.split(".")
    for name in around:
        model = model.model_fields[name].annotation  # type: ignore[assignment]
    return model.model_fields[last]


def _flags(key: str, info: FieldInfo, *notes: str, said: Flag | None = None) -> Iterator[KeyFlag]:
    """The flag of a field, and the shorter ones beside it."""
    kind, said = kind_of(info), said or _said(info)
    role = next(iter(marks(info, Input)), None)
    name = said.name or _spelled(key.rpartition(".")[2], info)
    off = said.off or (f"--no-{name[2:]}" if kind == "switch" and info.default is True else None)
    yield KeyFlag(
        key=key,
        name=name,
        kind=kind,
        help=_noted(said.help, notes) if said.help else _help(info.description or "", info, notes),
        metavar=said.metavar or metavar_of(info),
        parse=said.parse or (as_path if role else reader_of(info)),
        off=off,
        choices=tuple(choices_of(info, shown=True)),
        role=role.role if role else None,
        required=info.is_required(),
    )
    for short in marks(info, Short):
        yield KeyFlag(
            key=key,
            name=short.name,
            kind="list" if kind == "list" else "value",
            help=_noted(short.help or "", notes),
            metavar=short.metavar or "TEXT",
            parse=short.parse,
        )


def _said(info: FieldInfo) -> Flag:
    return next(iter(marks(info, Flag)), Flag())


def _spelled(name: str, info: FieldInfo) -> str:
    """The flag of a key."""
    return _said(info).name or f"--{name.replace('_', '-')}"


def as_path(name: str) -> str:
    """A folder or file here as no step is called, whatever its name."""
    here = name != "demo" and not Path(name).is_absolute() and Path(name).exists()
    return f"./{name}" if here else name


def _help(said: str, info: FieldInfo, notes: Sequence[str] = ()) -> str:
    """What a field means, what it may be, and what it is where nothing is typed."""
    said = said.replace("[]", "none")  # an empty list, as it is typed
    word = said.partition(" ")[0].rstrip(",")
    said = said[:1].upper() + said[1:] if word.isalpha() else said
    notes = [*notes]
    if choices := choices_of(info, shown=False):
        notes.append(f"one of: {', '.join(choices)}")
    elif keys := keys_of(info):
        notes.append(f"keys: {', '.join(keys)}")
    default = info.get_default(call_default_factory=True)
    if isinstance(default, (str, int, float)) and default != "" and not isinstance(default, bool):
        notes.append(f"default: {default}")
    if isinstance(default, list) and default:
        notes.append(f"default: {' '.join(default)}")
    return _noted(f"{said}.", notes)


def _noted(said: str, notes: Sequence[str]) -> str:
    return f"{said} [{'; '.join(notes)}]" if notes else said
