"""What a recipe may say. Strict: unknown keys, wrong types and wrong values are errors."""

from __future__ import annotations

from functools import cache
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, create_model, model_validator

from llmopt.recipe.fields import Flag, Settings, Size, StepId, Strict, settings_in
from llmopt.specs import VERBS, VerbSpec, load

RESERVED_IDS = frozenset({"model", "report"})


def _whole(value: Any) -> Any:
    """Python's 1 == 1.0 == True is no reason to take these for a version."""
    if isinstance(value, (bool, float)):
        raise ValueError(f"input should be 1, not {value}")
    return value


_TEXTS = "demo, a text, .jsonl, .json, .csv or .tsv file (also .gz, .bz2, .xz, .zst), or a data set"
_FIELD = "column of the texts or conversations; where text is not there: that of the conversations"


class CalibrationData(Strict):
    """Text that statistics are collected on."""

    source: Annotated[str, Flag("--calibration", metavar="TEXT")] = Field(
        "", description=f"{_TEXTS}; empty: none"
    )
    field: str = Field("text", description=_FIELD)
    sequences: int = Field(128, ge=1, description="how many sequences")
    length: int = Field(512, ge=8, description="tokens a sequence; at most the model's context")


class EvaluationData(Strict):
    """Held-out text that quality is measured on."""

    source: Annotated[str, Flag("--evaluation", metavar="TEXT")] = Field("demo", description=_TEXTS)
    field: str = Field("text", description=_FIELD)
    windows: int = Field(64, ge=2, description="how many windows; intervals resample windows")
    length: int = Field(512, ge=8, description="tokens a window; at most the model's context")


class Data(Strict):
    """The recipe's texts."""

    calibration: CalibrationData = Field(
        CalibrationData(), description="text that statistics are collected on"
    )
    evaluation: EvaluationData = Field(
        EvaluationData(), description="held-out text that quality is measured on"
    )


class Step(Strict):
    """An id, and one verb with its settings; see `step_class`."""

    id: StepId = Field(description="what other steps, and the folder of the result, call it")
    matrix: dict[str, list[Any]] = Field(
        default_factory=dict, description="a setting -> values: one step per combination"
    )

    @classmethod
    def verbs(cls) -> list[str]:
        """What a step may do."""
        return [name for name in cls.model_fields if name not in Step.model_fields]

    @model_validator(mode="before")
    @classmethod
    def _vary_deciding(cls, data: Any) -> Any:
        """What other settings follow from may come from the matrix alone: its first value stands.

        So may what has no default.
        """
        matrix = data.get("matrix") if isinstance(data, dict) else None
        if not isinstance(matrix, dict):
            return data
        firsts = {key: v[0] for key, v in matrix.items() if isinstance(v, list) and v}
        filled = {
            verb: {key: firsts[key] for key in deciding(verb) if key in firsts} | settings
            for verb in cls.verbs()
            if isinstance(settings := data.get(verb), dict)
        }
        return data | filled

    @model_validator(mode="after")
    def _one_verb(self) -> Step:
        verbs = self.verbs()
        given = [verb for verb in verbs if getattr(self, verb) is not None]
        if len(given) != 1:
            found = f"has {' and '.join(given)}" if given else "has none"
            raise ValueError(f"a step has exactly one of {', '.join(verbs)}; this one {found}")
        return self

    @property
    def verb(self) -> str:
        return next(verb for verb in self.verbs() if getattr(self, verb) is not None)

    @property
    def settings(self) -> Settings:
        settings: Settings = getattr(self, self.verb)
        return settings


_STEPS: Any = Field(min_length=1, description="what is done, in any order")


class Recipe(Strict):
    """The whole of it; see `recipe_class`."""

    version: Annotated[Literal[1], BeforeValidator(_whole)] = Field(description="of this format")
    name: str = Field("recipe", description="what reports call this")
    model: str = Field(description="a directory, hub id, artifact, or demo")
    revision: str | None = Field(None, description="hub branch, tag or commit")
    seed: Annotated[int, Flag(help="Seed of everything random.")] = Field(
        0, ge=0, lt=1 << 63, description="of everything random"
    )
    max_memory: Annotated[Size | None, Flag(metavar="SIZE")] = Field(
        None, description="what no step may hold at once: 8GiB, 6GB, or bytes; null: the machine's"
    )
    data: Data = Field(Data(), description="texts to calibrate and to measure on")
    steps: list[Step] = _STEPS


def settings_of(verb: str) -> type[Settings]:
    """The class of a verb's settings."""
    found: type[Settings] = load(f"{VERBS[verb].package}.settings").SETTINGS
    return found


def deciding(verb: str) -> set[str]:
    """The settings of a verb that have no default, or that choose which others there are."""
    found = settings_in(settings_of(verb)).values()
    choosers = {chooser for each in found for chooser in each.when}
    return choosers | {each.key for each in found if each.info.is_required()}


def step_class() -> type[Step]:
    """Steps that have the verbs of the table, as it is now."""
    return _classes(tuple(VERBS.values()))[0]


def recipe_class() -> type[Recipe]:
    """Recipes of such steps."""
    return _classes(tuple(VERBS.values()))[1]


@cache
def _classes(verbs: tuple[VerbSpec, ...]) -> tuple[type[Step], type[Recipe]]:
    fields: dict[str, Any] = {
        verb.id: (settings_of(verb.id) | None, Field(None, description=verb.summary))
        for verb in verbs
        if verb.command
    }
    step = create_model("Step", __base__=Step, __module__=__name__, **fields)
    listed: Any = (list[step], _STEPS)
    return step, create_model("Recipe", __base__=Recipe, __module__=__name__, steps=listed)
