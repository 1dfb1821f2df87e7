"""Decoder families as data: where a model's blocks and linears are, and which share an input.

families.json holds what a run of each model type shows (scripts/discover_families.py writes it).
Here stands what no run can show.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

from llmopt.errors import RequestError
from llmopt.specs.base import shortened
from llmopt.specs.discovered import discovered
from llmopt.specs.family import ExpertsSpec, FamilySpec, Fold, StackSpec
from llmopt.specs.naming import Naming, naming_of

__all__ = [
    "FAMILIES",
    "ExpertsSpec",
    "FamilySpec",
    "Naming",
    "StackSpec",
    "family_of",
    "naming_in",
    "naming_of",
]

DATA = Path(__file__).with_name("families.json")

#: the names of (base, head) in checkpoints that were written in other ways than now
_STORED_AS = {
    "gemma3": (
        ("language_model.model", "language_model.lm_head"),
        ("model.language_model", "lm_head"),
    ),
    "gpt_neox": (("gpt_neox", "embed_out"), ("gpt_neox", "lm_head")),
}


class _Families(Mapping[str, FamilySpec]):
    """By model type; each is made when it is asked for."""

    def __getitem__(self, model_type: str) -> FamilySpec:
        return _family(model_type)

    def __iter__(self) -> Iterator[str]:
        return iter(_data())

    def __len__(self) -> int:
        return len(_data())

    def __contains__(self, model_type: object) -> bool:
        return model_type in _data()


FAMILIES: Mapping[str, FamilySpec] = _Families()


def family_of(config: Mapping[str, Any]) -> FamilySpec:
    """The family that a config.json belongs to, or RequestError with those that are supported.

    A near name is no hint: another model_type makes no other model of it.
    """
    model_type = config.get("model_type")
    if not isinstance(model_type, str):
        raise RequestError("config.json does not say its model_type")
    if model_type in FAMILIES:
        return FAMILIES[model_type]
    why = _file()["others"].get(model_type)
    if why is None or why.startswith("ImportError"):  # of what may be installed by now
        why = _discover(config)
    if why is None and model_type in FAMILIES:
        return FAMILIES[model_type]
    raise RequestError(
        f"models of the type {shortened(model_type)!r} are not supported: {why}",
        hint="docs/families.md lists the types that are, and why others are not",
    )


def naming_in(config: Mapping[str, Any], stored: Iterable[str]) -> Naming:
    """The family of a config.json and how its checkpoint, with these tensor names, calls modules.

    Where the blocks lack what those of the family have, a tiny model of this very config is looked
    at: structures depend on settings.
    """
    names = list(stored)
    naming = naming_of(family_of(config), names)
    if not naming.lacking:
        return naming
    found = discovered(config).get("families", {}).get(config["model_type"])
    if found is None:
        return naming
    other = naming_of(family_from(naming.family.id, found), names)
    return naming if other.lacking else other


def _discover(config: Mapping[str, Any]) -> str | None:
    """Look at a type that is in no data; why it cannot be walked, None where it can."""
    found = discovered(config)
    for model_type, data in found.get("families", {}).items():
        if model_type not in FAMILIES:
            remember(model_type, data)
    return found.get("error")


def remember(model_type: str, data: Mapping[str, Any]) -> None:
    """Know a type from here on, by what discovery says of it."""
    _data()[model_type] = dict(data)
    _family.cache_clear()


def data_of(model_type: str) -> dict[str, Any]:
    """What was written of a type."""
    return _data()[model_type]


@cache
def _file() -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = json.loads(DATA.read_text("utf-8"))
    return found


def _data() -> dict[str, dict[str, Any]]:
    return _file()["families"]


@cache
def _family(model_type: str) -> FamilySpec:
    return family_from(model_type, _data()[model_type])


def family_from(model_type: str, data: Mapping[str, Any]) -> FamilySpec:
    """A family from what was written of it."""
    known = {**data, "id": model_type}
    for key in ("kinds", "routers", "renamed", "stored_as", "tables", "joined"):
        known[key] = _tuples(known.get(key, ()))
    known["stored_as"] = _STORED_AS.get(model_type, known["stored_as"])
    known["experts"] = ExpertsSpec(**known["experts"]) if known.get("experts") else None
    known["stacks"] = tuple(
        StackSpec(**{**stack, "linears": tuple(stack["linears"])})
        for stack in known.get("stacks", ())
    )
    known["folds"] = tuple(
        tuple(Fold(**{**fold, "readers": tuple(fold["readers"])}) for fold in kind)
        for kind in known.get("folds", ())
    )
    return FamilySpec(**known)


def _tuples(value: Any) -> Any:
    return tuple(map(_tuples, value)) if isinstance(value, list | tuple) else value
