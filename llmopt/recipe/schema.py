"""The JSON schema of recipes, which editors complete and check against."""

from __future__ import annotations

from typing import Any

from llmopt.recipe.models import Recipe


def json_schema() -> dict[str, Any]:
    """Draft 2020-12, with the known grids, methods, formats and runtimes as choices."""
    schema = Recipe.model_json_schema(by_alias=True)
    schema["$schema"] = "https://json-schema.org/draft/2020-12/schema"
    schema["title"] = "llmopt recipe"
    schema["$defs"]["ConvertStep"]["required"].remove("to")  # it may stand in the step's matrix
    return schema
