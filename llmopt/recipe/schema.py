"""The JSON schema of recipes, which editors complete and check against."""

from __future__ import annotations

from typing import Any

from llmopt.recipe.models import recipe_class, settings_of, step_class


def json_schema() -> dict[str, Any]:
    """Draft 2020-12, with the known grids, methods, formats and runtimes as choices."""
    schema = recipe_class().model_json_schema(by_alias=True)
    schema["$schema"] = "https://json-schema.org/draft/2020-12/schema"
    schema["title"] = "llmopt recipe"
    for verb in step_class().verbs():  # what is required may stand in the step's matrix
        schema["$defs"][settings_of(verb).__name__].pop("required", None)
    return schema
