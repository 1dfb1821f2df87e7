"""The JSON schema of recipes, which editors complete and check against."""

from __future__ import annotations

from typing import Any

from llmopt.recipe.models import Recipe
from llmopt.specs import FORMATS, GRIDS, METHODS, RUNTIMES
from llmopt.specs.formats import IMATRIX, PLAIN
from llmopt.specs.ggml import GGML_TYPES
from llmopt.specs.presets import PRESETS
from llmopt.specs.runtimes import AUTO

_WRITTEN = sorted(id_ for id_, spec in FORMATS.items() if spec.grids and not spec.one_file)
_PRESETS = [f"gguf:{preset}" for preset in PRESETS]
_NAMES: dict[str, list[str]] = {
    "method": sorted(METHODS),
    "grid": sorted(GRIDS),
    "format": _WRITTEN,
    "to": [*_WRITTEN, PLAIN, "gguf", *_PRESETS, IMATRIX],
    "preset": sorted(PRESETS),
    "type": list(GGML_TYPES),
    "runtime": [AUTO, *sorted(RUNTIMES)],
}


def json_schema() -> dict[str, Any]:
    """Draft 2020-12, with the known grids, methods, formats and runtimes as choices."""
    schema = Recipe.model_json_schema(by_alias=True)
    schema["$schema"] = "https://json-schema.org/draft/2020-12/schema"
    schema["title"] = "llmopt recipe"
    schema["$defs"]["ConvertStep"]["required"].remove("to")  # it may stand in the step's matrix
    for definition in schema["$defs"].values():
        for name, prop in definition.get("properties", {}).items():
            if name in _NAMES:
                _offer(prop, _NAMES[name])
            if name in ("from", "gate"):  # one name is as good as a list of one
                _allow_single(prop)
    return schema


def _offer(prop: dict[str, Any], names: list[str]) -> None:
    for option in prop.get("anyOf", [prop]):
        if option.get("type") == "string" and "enum" not in option:
            option["enum"] = names


def _allow_single(prop: dict[str, Any]) -> None:
    for option in prop.get("anyOf", [prop]):
        if option.get("type") == "array":
            option["type"] = ["array", "string"]
