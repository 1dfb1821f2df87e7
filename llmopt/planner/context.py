"""What the planner tells the plan of a verb, about one step of a recipe."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from pydantic import ValidationError

from llmopt.errors import LlmoptError
from llmopt.model.change import Change
from llmopt.model.contents import Contents
from llmopt.planner.graph import Names
from llmopt.planner.texts import Texts
from llmopt.recipe import Source
from llmopt.recipe.fields import Settings
from llmopt.recipe.models import settings_of
from llmopt.recipe.source import Key
from llmopt.specs import VERBS, load
from llmopt.step import MODEL, Planned, PlannedStep, Plans, StepInput, Text


@dataclass(frozen=True, kw_only=True)
class Shared:
    """What all steps of a recipe share. `known`: contents of the models known so far, by name."""

    texts: Texts
    names: Names
    known: dict[str, Contents]
    seed: int
    sequences: int
    max_memory: int | None
    model_name: str
    file_name: str | None


@dataclass(frozen=True, kw_only=True)
class Context(Shared):
    """A step.PlanContext. `asked_by`: the written step, where a plan asked for this one."""

    id: str
    key: Key
    source: Source
    settings: Settings
    asked_by: str | None = None
    judges: str | None = None
    changes: tuple[Change, ...] = ()

    @property
    def context_length(self) -> int | None:
        return self.texts.context_length

    def inputs(self, role: str) -> tuple[StepInput, ...]:
        return tuple(dict.fromkeys(StepInput(role, name) for _, name in self._named(role)))

    def model(self, role: str = MODEL) -> StepInput:
        found = list(self._named(role))
        key = found[0][0] if found else self.key
        if len(found) != 1:
            names = ", ".join(name for _, name in found)
            raise self.source.error(
                f"{len(found)} models are named where there is one", key, f"take one: {names}"
            )
        if not self.is_model(name := found[0][1]):
            raise self.source.error(f"{name!r} is no model", key, "from: model")
        return StepInput(role, name)

    def _named(self, role: str) -> Iterator[tuple[Key, str]]:
        """Each step that settings name in a role, and the key that names it."""
        for mark, field, typed in self.settings.inputs():
            if mark.role == role:
                key = (*self.key, field)
                for name in self.names.members(typed, key, self.source):
                    yield key, name

    def contents(self, name: str) -> Contents:
        return self.known[name]

    def is_model(self, name: str) -> bool:
        return name in self.known

    def models(self) -> tuple[str, ...]:
        return tuple(name for name in self.known if name not in self.names.outside)

    def calibration(self, needed_by: str | None, key: Key) -> Text | None:
        return self.texts.calibration(needed_by, key, self.source)

    def evaluation(self, windows: int | None = None) -> Text:
        return self.texts.evaluation(windows, self.source)

    def held_out(self) -> Text:
        return self.texts.held_out(self.source)

    def step(
        self, verb: str, settings: Mapping[str, object], name: str, *,
        key: Key = (), contents: Contents | None = None, judges: bool = False,
        changes: Sequence[Change] = (),
    ) -> tuple[PlannedStep, ...]:  # fmt: skip
        asked = replace(
            self,
            id=f"{self.id}.{name}",
            key=key or self.key,
            settings=_validated(verb, settings),
            known=self.known | ({self.id: contents} if contents else {}),
            names=replace(self.names, ids={**self.names.ids, self.id: [self.id]}),
            asked_by=self.id,
            judges=self.id if judges else None,
            changes=tuple(changes),
        )
        return planned(verb, asked).steps


def planned(verb: str, context: Context) -> Planned:
    """What the plan of a verb makes of a step."""
    plans: Plans[Settings] = load(f"{VERBS[verb].package}.plan")
    found = plans.plan(context.settings, context)
    steps = (
        replace(
            step, asked_by=step.asked_by or context.asked_by, judges=step.judges or context.judges
        )
        for step in found.steps
    )
    return replace(found, steps=tuple(steps))


def _validated(verb: str, settings: Mapping[str, object]) -> Settings:
    """The settings that one verb asks another for; LlmoptError where that one has no such."""
    try:
        return settings_of(verb).model_validate(dict(settings))
    except ValidationError as error:
        raise LlmoptError(f"a plan asks {verb} for what it cannot do: {error}") from error
