"""What a table names is there, and is what its Protocol says: mypy holds types, this the rest."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from types import ModuleType

import pytest

from llmopt.evaluate.probe import Probe
from llmopt.formats.codec import Codec
from llmopt.formats.config import ConfigReader, ConfigWriter
from llmopt.formats.kind import FileKind, Kind
from llmopt.grids.base import Grid
from llmopt.grids.ggml.base import BlockGrid
from llmopt.methods.quantize.base import Method
from llmopt.recipe.fields import Settings
from llmopt.runtimes.base import Runtime
from llmopt.specs import CHECKPOINT, FORMATS, GRIDS, KINDS, METHODS, RUNTIMES, VERBS, load
from llmopt.specs.ggml import GGML_TYPES
from llmopt.specs.metrics import PROBES
from llmopt.step import Plans, Runs


def entries() -> Iterator[tuple[str, object, type]]:
    """Each line of a table that names an implementation: what it is, and what it has to be."""
    for verb in VERBS.values():
        yield f"{verb.id} plan", load(f"{verb.package}.plan"), Plans
        yield f"{verb.id} run", load(f"{verb.package}.run"), Runs
    yield from ((f"method {each.id}", load(each.module), Method) for each in METHODS.values())
    yield from ((f"grid {each.id}", load(each.module), Grid) for each in GRIDS.values())
    yield from ((f"runtime {each.id}", load(each.module), Runtime) for each in RUNTIMES.values())
    alone = (each for each in PROBES.values() if not each.alone)
    yield from ((f"probe {each.id}", load(each.module), Probe) for each in alone)
    yield from containers()


def containers() -> Iterator[tuple[str, object, type]]:
    for type_id, spec in GGML_TYPES.items():
        if spec.block > 1:
            yield f"type {type_id}", load(spec.module).GRIDS[type_id], BlockGrid
    for format_ in FORMATS.values():
        written = format_.grids and format_.kind == CHECKPOINT
        config = ConfigWriter if written else ConfigReader
        yield f"config {format_.id}", load(format_.config_module), config
        yield f"format {format_.id}", load(format_.module).Codec, Codec
    for kind in KINDS.values():
        if kind.module is not None:
            yield f"kind {kind.id}", load(kind.module), FileKind if kind.files else Kind


def members(protocol: type) -> dict[str, object]:
    """What a Protocol has, and those that it extends."""
    return {
        name: each
        for base in reversed(protocol.__mro__)
        if getattr(base, "_is_protocol", False)
        for name, each in {**vars(base).get("__annotations__", {}), **vars(base)}.items()
        if not name.startswith("_")
    }


_ENTRIES = {name: (found, protocol) for name, found, protocol in entries()}


@pytest.mark.parametrize("name", _ENTRIES)
def test_what_a_table_names_is_what_its_protocol_says(name: str) -> None:
    found, protocol = _ENTRIES[name]
    for member, wanted in members(protocol).items():
        assert hasattr(found, member), f"{name} has no {member}"
        if not inspect.isfunction(wanted):
            continue
        asked = [p for n, p in inspect.signature(wanted).parameters.items() if n != "self"]
        has = inspect.signature(getattr(found, member)).parameters
        own = [p for n, p in has.items() if n != "self"]
        if any(p.kind in (p.VAR_POSITIONAL, p.VAR_KEYWORD) for p in own):
            continue
        for position, parameter in enumerate(asked):
            if parameter.kind is parameter.KEYWORD_ONLY:
                assert parameter.name in has, f"{name}: {member} has no {parameter.name}"
            else:
                assert position < len(own), f"{name}: {member} takes no {parameter.name}"
        spare = [p for p in own[len(asked) :] if p.name not in {a.name for a in asked}]
        assert all(p.default is not p.empty for p in spare), f"{name}: {member} asks for more"


@pytest.mark.parametrize("verb", VERBS)
def test_a_verbs_settings_are_frozen_strict_and_described(verb: str) -> None:
    module: ModuleType = load(f"{VERBS[verb].package}.settings")
    assert issubclass(module.SETTINGS, Settings)
    config = module.SETTINGS.model_config
    assert (config["frozen"], config["strict"], config["extra"]) == (True, True, "forbid")
    for name, info in module.SETTINGS.model_fields.items():
        assert info.description or info.metadata, name
