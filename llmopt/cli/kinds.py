"""What a field of settings takes, read from its type: one value, many, a switch; which choices."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Annotated, Literal, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from llmopt.recipe.fields import Choice

Kind = Literal["value", "list", "mapping", "switch"]


def kind_of(info: FieldInfo) -> Kind:
    """How many values, or which of two."""
    outer = {get_origin(each) or each for each in _alternatives(info.annotation)}
    if bool in outer:
        return "switch"
    return "list" if list in outer else "mapping" if dict in outer else "value"


def choices_of(part: object, *, shown: bool) -> list[str]:
    """What tables and types offer for a field or the items of a list; `shown`: in all spellings."""
    if isinstance(part, Choice):
        return list(part.shown if shown else part.names())
    if get_origin(part) is Literal:
        return list(map(str, get_args(part)))
    inner = get_args(part)
    if isinstance(part, FieldInfo):
        inner = (*part.metadata, part.annotation)
    return list(dict.fromkeys(each for one in inner for each in choices_of(one, shown=shown)))


def keys_of(info: FieldInfo) -> list[str]:
    """The keys of a list's items beside the pattern that they match."""
    models = [each for each in _leaves(info.annotation) if isinstance(each, type)]
    return [
        key
        for model in models
        if issubclass(model, BaseModel)
        for key in model.model_fields
        if key != "match"
    ]


def metavar_of(info: FieldInfo) -> str:
    """What stands for the value in --help."""
    return "NUMBER" if _is_number(info) else "NAME" if choices_of(info, shown=False) else "TEXT"


def reader_of(info: FieldInfo) -> Callable[[str], object]:
    """Text as a number where the field is one; what is none is for the recipe to refuse."""

    def read(text: str) -> object:
        for number in (int, float) if _is_number(info) else ():
            try:
                return number(text)
            except ValueError:
                continue
        return text

    return read


def _is_number(info: FieldInfo) -> bool:
    return not _leaves(info.annotation).isdisjoint((int, float))


def _alternatives(annotation: object) -> Iterator[object]:
    """What stands between the bars of a type, without Annotated."""
    if get_origin(annotation) is Annotated:
        yield from _alternatives(get_args(annotation)[0])
    elif isinstance(annotation, type) or get_origin(annotation) in (list, dict, Literal):
        yield annotation
    else:
        for each in get_args(annotation):
            yield from _alternatives(each)


def _leaves(annotation: object) -> set[object]:
    """The plain types in a type, those of a list's items too."""
    found = set[object]()
    for each in _alternatives(annotation):
        inner = get_args(each) if get_origin(each) in (list, dict) else ()
        found |= set[object]().union(*map(_leaves, inner)) if inner else {each}
    return found
