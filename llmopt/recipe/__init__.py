"""What a YAML recipe may say, and how it is read."""

from llmopt.recipe.loader import from_data, load, shipped_recipes
from llmopt.recipe.models import CalibrationData, EvaluationData, Recipe, Step
from llmopt.recipe.source import Source

__all__ = [
    "CalibrationData",
    "EvaluationData",
    "Recipe",
    "Source",
    "Step",
    "from_data",
    "load",
    "shipped_recipes",
]
