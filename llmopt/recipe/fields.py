"""The types that verbs' settings are made of, and what stands beside a field. No torch.

A field's type says what it may be, its description what it means, and this, in `Annotated`, how
the command line spells it (Flag, Short) and whether it names a step (Input).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Annotated, Any, TypeVar

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field
from pydantic import GetCoreSchemaHandler as CoreHandler
from pydantic import GetJsonSchemaHandler as JsonHandler
from pydantic_core import CoreSchema, PydanticCustomError, core_schema

from llmopt.errors import RequestError
from llmopt.specs import FORMATS, GRIDS, METHODS, RUNTIMES, lookup
from llmopt.specs.base import shortened
from llmopt.specs.ggml import GGML_TYPES
from llmopt.specs.presets import PRESETS
from llmopt.specs.runtimes import AUTO

T = TypeVar("T")


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
    return [id_ for id_, spec in FORMATS.items() if spec.grids and not spec.one_file]


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


StepId = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$", max_length=80)]
GridId = Annotated[str, Choice("grid", lambda: GRIDS)]
MethodId = Annotated[str, Choice("method", lambda: METHODS)]
FormatId = Annotated[str, Choice("format", written_formats)]
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


class Settings(Strict):
    """What a recipe may say of a verb or a method; a verb's class is its module's SETTINGS."""

    def inputs(self) -> Iterator[tuple[Input, str, str]]:
        """What the step is made from, or measures: its role, the key, and a name that it gives."""
        for field, info in type(self).model_fields.items():
            for mark in info.metadata:
                if isinstance(mark, Input):
                    given = getattr(self, field)
                    names = given if isinstance(given, list) else [] if given is None else [given]
                    yield from ((mark, info.alias or field, name) for name in names)


def bits_of_grid(text: str) -> str:
    """The grid that --bits asks for; RequestError where no integer grid has so many."""
    bits = [str(spec.bits) for spec in GRIDS.values() if spec.id == f"int{spec.bits}"]
    if text not in bits:
        raise RequestError(f"{text} is not {', '.join(bits[:-1])} or {bits[-1]}")
    return f"int{text}"
