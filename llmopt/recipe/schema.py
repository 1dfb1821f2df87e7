"""The JSON schema of recipes, which editors complete and check against."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel

from llmopt.recipe.fields import Settings, settings_in
from llmopt.recipe.models import recipe_class, settings_of, step_class

Schema = dict[str, Any]


def json_schema() -> Schema:
    """Draft 2020-12, with what the tables have as choices.

    All keys of a verb stand side by side; which of them go with which choice, say its conditions.
    """
    schema = recipe_class().model_json_schema(by_alias=True)
    schema["$schema"] = "https://json-schema.org/draft/2020-12/schema"
    schema["title"] = "llmopt recipe"
    definitions: Schema = schema["$defs"]
    for verb in step_class().verbs():
        settings = settings_of(verb)
        definition = definitions[settings.__name__]
        _spread(definition, settings, definitions)
        found = definition["properties"]
        definition["properties"] = {key: found[key] for key in settings_in(settings)}
        definition.pop("required", None)  # it may stand in the step's matrix
    return schema


def _spread(schema: Schema, model: type[BaseModel], definitions: Schema) -> None:
    """Put the keys of a model's variant beside its own, and say what goes with what."""
    found = model.variant() if issubclass(model, Settings) else None
    if found is None:
        return
    name, variant = found
    choices: dict[type[Settings], list[str]] = {}
    for choice, inner in variant.classes().items():
        choices.setdefault(inner, []).append(choice)
    schemas = {inner: _schema_of(inner, definitions) for inner in choices}
    keys: Schema = {
        key: prop for each in schemas.values() for key, prop in each["properties"].items()
    }
    schema["properties"] |= keys
    del schema["properties"][name]
    schema["allOf"] = [
        {
            "if": {"properties": {variant.chooser: {"enum": names}}, "required": [variant.chooser]},
            "then": {"properties": {key: False for key in keys if key not in settings_in(inner)}}
            | ({"allOf": schemas[inner]["allOf"]} if "allOf" in schemas[inner] else {}),
        }
        for inner, names in choices.items()
    ]


def _schema_of(model: type[Settings], definitions: Schema) -> Schema:
    schema = model.model_json_schema(by_alias=True)
    definitions |= schema.pop("$defs", {})
    _spread(schema, model, definitions)
    return schema
