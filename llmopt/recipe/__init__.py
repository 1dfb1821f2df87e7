"""What a YAML recipe may say, and how it is read."""

from llmopt.recipe.loader import from_data, load, shipped_recipes
from llmopt.recipe.models import (
    VERBS,
    BenchStep,
    CalibrationData,
    ConvertStep,
    EvaluationData,
    GgufSettings,
    Override,
    QuantizeStep,
    Recipe,
    Step,
    Verb,
)
from llmopt.recipe.source import Source

__all__ = [
    "VERBS",
    "BenchStep",
    "CalibrationData",
    "ConvertStep",
    "EvaluationData",
    "GgufSettings",
    "Override",
    "QuantizeStep",
    "Recipe",
    "Source",
    "Step",
    "Verb",
    "from_data",
    "load",
    "shipped_recipes",
]
