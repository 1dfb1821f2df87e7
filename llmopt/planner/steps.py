"""Planned steps, and a plan of them."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from llmopt import artifact
from llmopt.model.change import TensorFate
from llmopt.model.footprint import NOTHING, Footprint
from llmopt.recipe import Recipe
from llmopt.recipe.source import Key
from llmopt.sources import ModelSource

MODEL = "model"
#: raised when a change to a stage makes its old results no longer what it would write
VERB_VERSIONS: dict[str, int] = {"quantize": 6, "convert": 6, "bench": 2, "allocate": 2}


@dataclass(frozen=True)
class PlannedStep:
    """One step of the DAG, with nothing left to decide.

    `settings` are effective: every default filled in, texts by name and digest and never by their
    place, which is in `texts`. `parents` are ids of steps, or "model". `gates_of` names the step
    whose result this one judges.
    """

    id: str
    verb: str
    settings: dict[str, Any]
    parents: tuple[str, ...]
    key: Key
    gates_of: str | None = None
    texts: dict[str, dict[str, Any]] = field(default_factory=dict)
    fates: tuple[TensorFate, ...] = ()
    footprint: Footprint = NOTHING

    def digest_key(self, digests: dict[str, str]) -> str:
        """The step's key, given the digest of each parent."""
        parents = {name: digests[name] for name in self.parents}
        return artifact.step_key(self.verb, VERB_VERSIONS[self.verb], self.settings, parents)


@dataclass(frozen=True)
class Plan:
    """Steps in an order in which they can run. `outputs` says where each one's result goes.

    With `named`, the one written step's result is what -o names, and not one among others in a
    run's folder: it is the user's, and no cache.
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
