"""The types that verbs' settings are made of, and what stands beside a field. No torch.

A field's type says what it may be, its description what it means, and this, in `Annotated`, how
the command line spells it (Flag, Short) and whether it names a step (Input).
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, TypeVar, get_args

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    JsonValue,
    SerializerFunctionWrapHandler,
    model_serializer,
    model_validator,
)
from pydantic import GetCoreSchemaHandler as CoreHandler
from pydantic import GetJsonSchemaHandler as JsonHandler
from pydantic.fields import FieldInfo
from pydantic_core import CoreSchema, PydanticCustomError, core_schema

from llmopt.errors import RequestError
from llmopt.specs import CHECKPOINT, FORMATS, GRIDS, METHODS, RUNTIMES, lookup, nearest
from llmopt.specs.base import shortened
from llmopt.specs.ggml import GGML_TYPES
from llmopt.specs.presets import PRESETS
from llmopt.specs.runtimes import AUTO

T = TypeVar("T")
M = TypeVar("M")


@dataclass(frozen=True)
class Flag:
    """How the command line spells a field where that is not --field-name VALUE.

    `name` is that of the flag; `off` that of a switch which sets a field to false. `metavar` and
    `help` are what --help says; without `help`, the field's description. The flag of a list or a
    mapping may be given many times, and `none` alone stands for an empty one. `parse` makes an item
    of a list, a mapping of one key, or the value of another field out of what was typed;
    RequestError for what is none.
    """

    name: str | None = None
    metavar: str | None = None
    off: str | None = None
    help: str | None = None
    parse: Callable[[str], object] | None = None


@dataclass(frozen=True)
class Short:
    """Another flag for the same field, as --bits 4 is for --grid int4; the rest as in Flag."""

    name: str
    parse: Callable[[str], object]
    metavar: str | None = None
    help: str | None = None


@dataclass(frozen=True)
class Input:
    """The field names steps, or the recipe's model: what role these have in the step.

    With `outside` it may name a model that is neither.
    """

    role: str
    outside: bool = False


@dataclass(frozen=True)
class Asks:
    """The field asks for another step: it is no part of what this one does."""


@dataclass(frozen=True)
class Choice:
    """The field is one of a table's names, which are read when they are asked for.

    `offered` are the ways of writing them that help and schema show, where there are more.
    """

    kind: str
    names: Callable[[], Iterable[str]]
    offered: Callable[[], Iterable[str]] | None = None

    def __get_pydantic_core_schema__(self, source: object, handler: CoreHandler) -> CoreSchema:
        return core_schema.no_info_after_validator_function(self._known, handler(source))

    def __get_pydantic_json_schema__(
        self, schema: CoreSchema, handler: JsonHandler
    ) -> dict[str, Any]:
        return {**handler(schema), "enum": self.shown}

    @property
    def shown(self) -> list[str]:
        """What may be written."""
        return list((self.offered or self.names)())

    def _known(self, name: str) -> str:
        checked(lambda: lookup(dict.fromkeys(self.names()), self.kind, name))
        return name


def checked(check: Callable[[], T]) -> T:
    """What a check returns; its refusal as the error that pydantic collects."""
    try:
        return check()
    except RequestError as error:
        said = {"message": error.message, "hint": error.hint}
        raise PydanticCustomError("refused", "{message}", said) from None


def written_formats() -> list[str]:
    """The formats of checkpoints that a step can write."""
    return [id_ for id_, spec in FORMATS.items() if spec.grids and spec.kind == CHECKPOINT]


def _transforms() -> list[str]:
    return list(dict.fromkeys(["none", *(spec.transform for spec in METHODS.values())]))


def _activations() -> list[str]:
    return sorted({grid for spec in FORMATS.values() for grid in spec.activations})


_SIZE = re.compile(r"(?P<number>\d{1,18}(\.\d{1,18})?) ?(?P<unit>[kmgt]i?)?b?", re.IGNORECASE)
_UNITS = {"": 1, **{u: 10 ** (3 * (i + 1)) for i, u in enumerate("kmgt")},
          **{f"{u}i": 1024 ** (i + 1) for i, u in enumerate("kmgt")}}  # fmt: skip


def parse_size(text: str | int) -> int:
    """Bytes in "5MB", "1.5 GiB" or 5000000; RequestError where it is none of these."""
    match = _SIZE.fullmatch(str(text).strip())
    unit = _UNITS[(match["unit"] or "").lower()] if match else 0
    if match is None or not (size := int(float(match["number"]) * unit)):
        raise RequestError(
            f"{shortened(repr(text))} is no size",
            hint="write it as 500KB, 5MB, 1.5GiB, or in bytes (KB: 1000, KiB: 1024)",
        )
    return size


def _size(value: object) -> object:
    if isinstance(value, str | int) and not isinstance(value, bool):
        return checked(lambda: parse_size(value))
    return value


def _as_list(value: object) -> object:
    return [value] if isinstance(value, str) else value


def _group_size(value: int) -> int:
    if value == -1 or (value >= 16 and value % 16 == 0):
        return value
    raise ValueError(f"{value} is not a multiple of 16 from 16 up, or -1 for one group a row")


#: the model that a step is made from
From = Annotated[str, Input("model")]
StepId = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$", max_length=80)]
GridId = Annotated[str, Choice("grid", lambda: GRIDS)]
MethodId = Annotated[str, Choice("method", lambda: METHODS)]
FormatId = Annotated[str, Choice("format", written_formats)]
#: what is done to weights before a method, as methods ask for it
TransformId = Annotated[str, Choice("transform", lambda: ["auto", *_transforms()])]
#: what activations may be rounded to in some format
ActivationsId = Annotated[str, Choice("grid of activations", lambda: ["none", *_activations()])]
PresetId = Annotated[str, Choice("preset", lambda: PRESETS)]
TypeId = Annotated[str, Choice("GGUF type", lambda: GGML_TYPES)]
RuntimeId = Annotated[str, Choice("runtime", lambda: [AUTO, *RUNTIMES])]
GroupSize = Annotated[int, AfterValidator(_group_size)]
#: bytes; 5MB and 1.5GiB in a recipe
Size = Annotated[int, BeforeValidator(_size, json_schema_input_type=int | str)]
Names = Annotated[list[str], BeforeValidator(_as_list, json_schema_input_type=list[str] | str)]
Gate = Annotated[str, Field(min_length=3)]
Gates = Annotated[list[Gate], BeforeValidator(_as_list, json_schema_input_type=list[Gate] | str)]


class Strict(BaseModel):
    """What a recipe says: unknown keys, wrong types and wrong values are errors."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, populate_by_name=True)


class _Keys(dict[str, Any]):
    """What a recipe says of a variant, and the value of what chooses it."""

    chosen: object = None


class Settings(Strict):
    """What a recipe may say of a verb or a method; a verb's class is its module's SETTINGS.

    A class may have one field with a Variant. Its keys stand beside the others, in recipes and in
    documents alike.
    """

    @classmethod
    def variant(cls) -> tuple[str, Variant] | None:
        """The field whose class another one chooses, and how."""
        for name, info in cls.model_fields.items():
            for mark in marks(info, Variant):
                return name, mark
        return None

    @model_validator(mode="before")
    @classmethod
    def _nested(cls, data: Any) -> Any:
        """What is no key of this class is one of the variant's."""
        if (found := cls.variant()) is None or not isinstance(data, dict):
            return data
        own = {word for name, f in cls.model_fields.items() for word in (name, f.alias or name)}
        if isinstance(data.get(found[0]), Settings):
            return data
        own.discard(found[0])
        inner = _Keys({key: value for key, value in data.items() if key not in own})
        inner.chosen = data.get(found[1].chooser, cls.model_fields[found[1].chooser].default)
        return {key: value for key, value in data.items() if key in own} | {found[0]: inner}

    @model_serializer(mode="wrap")
    def _flat(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        data: dict[str, Any] = handler(self)
        found = self.variant()
        return data | data.pop(found[0], {}) if found else data

    def document(self) -> dict[str, JsonValue]:
        """What the result follows from, as keys say it, for manifests; inputs stand elsewhere."""
        data = self.model_dump(mode="json", by_alias=True)
        return {key: value for key, value in data.items() if key not in self._left_out()}

    def _left_out(self) -> set[str]:
        found = self.variant()
        inner: set[str] = getattr(self, found[0])._left_out() if found else set()
        fields = type(self).model_fields.items()
        return inner | {i.alias or n for n, i in fields if marks(i, Input) + marks(i, Asks)}

    def inputs(self) -> Iterator[tuple[Input, str, str]]:
        """What the step is made from, or measures: its role, the key, and a name that it gives."""
        for name, info in type(self).model_fields.items():
            for mark in marks(info, Input):
                given = getattr(self, name)
                names = given if isinstance(given, list) else [] if given is None else [given]
                yield from ((mark, info.alias or name, each) for each in names)


@dataclass(frozen=True)
class Variant:
    """The field holds the settings that follow from another one's value, of a class of their own.

    `chooser` is that other field; `classes` has a class for each of its values, however it may be
    written. `said` puts a value into words.
    """

    chooser: str
    classes: Callable[[], Mapping[str, type[Settings]]]
    said: str = "{}"

    def __get_pydantic_core_schema__(self, source: object, handler: CoreHandler) -> CoreSchema:
        return core_schema.no_info_plain_validator_function(self._of_chosen)

    def __get_pydantic_json_schema__(self, _: CoreSchema, __: JsonHandler) -> dict[str, Any]:
        return {}  # its keys stand beside the others: see `schema`

    def meant(self, chosen: object) -> tuple[str, type[Settings]] | None:
        """The choice, or the nearest to one that is none, and its class."""
        classes, name = self.classes(), str(chosen)
        name = name if name in classes else nearest(name, classes) or ""
        return (name, classes[name]) if name else None

    def _of_chosen(self, value: Any) -> Any:
        found = self.meant(value.chosen) if isinstance(value, _Keys) else None
        return found[1].model_validate(dict(value)) if found else value


@dataclass(frozen=True)
class Setting:
    """A key that a recipe may have. `when`: a chooser -> its values that the key goes with."""

    key: str
    info: FieldInfo
    when: Mapping[str, tuple[str, ...]] = field(default_factory=dict)


def settings_in(model: type[BaseModel]) -> dict[str, Setting]:
    """All keys of a class, those of its variants among them; its own before inherited ones."""
    found: dict[str, Setting] = {}
    names = (name for each in model.__mro__ for name in inspect.get_annotations(each))
    for name in dict.fromkeys(name for name in names if name in model.model_fields):
        info = model.model_fields[name]
        variants = marks(info, Variant)
        if not variants:
            found[info.alias or name] = Setting(info.alias or name, info)
        for variant in variants:
            for choice, inner in variant.classes().items():
                for key, each in settings_in(inner).items():
                    before = found.get(key, each)
                    when = {
                        chooser: tuple(dict.fromkeys((*before.when.get(chooser, ()), *values)))
                        for chooser, values in ((variant.chooser, (choice,)), *each.when.items())
                    }
                    found[key] = Setting(key, before.info, when)
    return found


def models_in(annotation: object) -> Iterator[type[BaseModel]]:
    """The classes of mappings in a field's type."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for inner in get_args(annotation):
        yield from models_in(inner)


def marks(info: FieldInfo, kind: type[M]) -> list[M]:
    """What of this kind stands beside a field."""
    return [mark for mark in info.metadata if isinstance(mark, kind)]


def bits_of_grid(text: str) -> str:
    """The grid that --bits asks for; RequestError where no integer grid has so many."""
    bits = [str(spec.bits) for spec in GRIDS.values() if spec.id == f"int{spec.bits}"]
    if text not in bits:
        raise RequestError(f"{text} is not {', '.join(bits[:-1])} or {bits[-1]}")
    return f"int{text}"


#: how the command line spells `grid` and `symmetric`, too
BITS = Short("--bits", bits_of_grid, metavar="BITS", help="--bits 4 is short for --grid int4.")
ASYMMETRIC = Flag(off="--asymmetric", help="--asymmetric: a zero point per group.")
