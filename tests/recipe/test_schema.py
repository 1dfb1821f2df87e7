"""What the JSON schema offers and describes, held to the tables and to what is validated."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import Any

import pytest
from pydantic import BaseModel

from llmopt.recipe.fields import models_in, settings_in, written_formats
from llmopt.recipe.models import Recipe, settings_of, step_class
from llmopt.recipe.schema import json_schema
from llmopt.specs import FORMATS, GRIDS, METHODS, RUNTIMES
from llmopt.specs.ggml import GGML_TYPES
from llmopt.specs.presets import PRESETS
from llmopt.specs.runtimes import AUTO

ROUNDED = {grid for spec in FORMATS.values() for grid in spec.activations}
TRANSFORMS = {spec.transform for spec in METHODS.values()}
TARGETS = {*written_formats(), "hf", "gguf", *(f"gguf:{preset}" for preset in PRESETS), "imatrix"}
#: a key of a step, by its mappings -> all that may be written there
CHOICES: dict[str, Iterable[str]] = {
    "quantize.method": METHODS,
    "quantize.grid": GRIDS,
    "quantize.overrides.grid": GRIDS,
    "quantize.format": written_formats(),
    "quantize.transform": {"auto", *TRANSFORMS},
    "quantize.activations": {"none", *ROUNDED},
    "convert.to": TARGETS,
    "convert.grid": GRIDS,
    "convert.preset": PRESETS,
    "convert.candidates": GGML_TYPES,
    "convert.overrides.type": GGML_TYPES,
    "bench.runtime": {AUTO, *RUNTIMES},
}


def offered(schema: dict[str, Any], key: str) -> set[str]:
    """The choices at a key, of a list those of its items."""
    verb, *parts = key.split(".")
    found: Any = schema["$defs"][settings_of(verb).__name__]
    for part in parts:
        found = found["properties"][part]
        for option in found.get("anyOf", [found]):
            found = option.get("items", option) if option.get("type") != "null" else found
        if "$ref" in found:
            found = schema["$defs"][found["$ref"].rpartition("/")[2]]
    return set(found["enum"])


@pytest.mark.parametrize("key", CHOICES)
def test_every_choice_of_a_table_is_offered_at_its_key(key: str) -> None:
    assert offered(json_schema(), key) == set(CHOICES[key])


def test_what_is_added_to_a_table_is_offered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(FORMATS, "new", replace(FORMATS["gptq"], id="new"))
    monkeypatch.setitem(METHODS, "better", replace(METHODS["gptq"], id="better"))
    schema = json_schema()
    for key, name in (("quantize.format", "new"), ("convert.to", "new"),
                      ("quantize.method", "better")):  # fmt: skip
        assert name in offered(schema, key)
    settings: Any = settings_of("quantize").model_validate({"method": "better", "damping": 0.2})
    assert settings.solver.damping == 0.2


def mappings(model: type[BaseModel]) -> Iterator[tuple[str, Any]]:
    """Every key below a class, with its field."""
    for key, setting in settings_in(model).items():
        yield f"{model.__name__}.{key}", setting.info
        for inner in models_in(setting.info.annotation):
            yield from mappings(inner)


def test_every_field_is_described() -> None:
    fields = dict(mappings(Recipe)) | dict(mappings(step_class()))
    assert {"QuantizeSettings.grid", "GgufTarget.preset"} & fields.keys()
    assert [name for name, info in fields.items() if not info.description] == []


def test_keys_of_the_schema_are_those_that_are_read() -> None:
    for verb in step_class().verbs():
        definition = json_schema()["$defs"][settings_of(verb).__name__]
        assert list(definition["properties"]) == list(settings_in(settings_of(verb)))


def test_which_keys_go_with_a_target() -> None:
    rules = json_schema()["$defs"]["ConvertSettings"]["allOf"]
    of = {name: rule for rule in rules for name in rule["if"]["properties"]["to"]["enum"]}
    assert of.keys() == TARGETS
    assert of["gguf"] == of["gguf:Q4_K_M"] != of["hf"]
    refused = {to: set(rule["then"]["properties"]) for to, rule in of.items()}
    assert "preset" in refused["hf"] & refused["awq"] & refused["imatrix"]
    assert "grid" in refused["gguf"]
    assert "gate" in refused["imatrix"]
    assert "exact" not in refused["hf"] | refused["awq"] | refused["gguf"]
    (rtn, _) = of["gguf"]["then"]["allOf"]
    assert rtn["then"]["properties"] == {"damping": False, "refine": False}
