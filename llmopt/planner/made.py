"""A plan: planned steps in an order in which they can run, and where their results go."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from llmopt.recipe import Recipe
from llmopt.sources import ModelSource
from llmopt.specs.kinds import kind_of
from llmopt.step import MODEL, PlannedStep


@dataclass(frozen=True)
class Plan:
    """Steps in an order in which they can run. `outputs` says where each one's result goes.

    `externals` are the folders of models from outside the recipe. With `named`, the one written
    step's result is what -o names, and not one among others in a run's folder: it is the user's,
    and no cache.
    """

    recipe: Recipe
    model: ModelSource
    steps: tuple[PlannedStep, ...]
    outputs: dict[str, Path] = field(default_factory=dict)
    externals: dict[str, Path] = field(default_factory=dict)
    named: bool = False

    def by_id(self, name: str) -> PlannedStep:
        """The step with this id."""
        return next(step for step in self.steps if step.id == name)

    def folder_of(self, name: str) -> Path:
        """Where a parent lies: the model, an artifact from outside, or a step's result."""
        if name == MODEL:
            return self.model.folder
        return self.externals.get(name) or self.outputs[name]

    def is_model(self, name: str) -> bool:
        """Whether a parent is a model: the recipe's, one from outside, or what a step leaves."""
        return name not in self.outputs or yields_model(self.by_id(name))


def yields_model(step: PlannedStep) -> bool:
    """Whether a step leaves a model, and not results or advice."""
    return step.judges is None and kind_of(step.writes).holds == "model"
