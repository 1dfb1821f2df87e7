"""What the settings of several verbs have in common. No torch."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Literal

from pydantic import Field, JsonValue

from llmopt.recipe.fields import Asks, Flag, Gates, Settings, Size

Search = Literal["best", "reference"]


@dataclass(frozen=True)
class Solving:
    """How codes of linears are chosen: a method, its own settings, and how blocks are searched."""

    format: str
    method: str
    settings: Settings
    search: Search = "best"


@dataclass(frozen=True)
class About:
    """What a file is to say of its model beside what the model says of itself.

    `model_name` is what the model is called where nothing says a name.
    """

    model_name: str = ""
    name: str | None = None
    metadata: Mapping[str, JsonValue] = field(default_factory=dict)


class Calibrated(Settings):
    """Text goes through the model."""

    batch_size: int = Field(2, ge=1, description="calibration sequences run at once")


class Rounding(Calibrated):
    """Weights are rounded, by the same settings or by those that a budget leaves each linear."""

    target_bpw: float | None = Field(
        None, gt=0, le=32, description="stored bits a quantized weight, scales and all; a budget"
    )
    target_size: Annotated[Size | None, Flag(metavar="SIZE")] = Field(
        None, description="budget for the weight files as a whole: 5MB, 1.5GiB, or bytes"
    )

    @property
    def has_budget(self) -> bool:
        """Whether settings are chosen for each linear so that all together meet a target."""
        return self.target_bpw is not None or self.target_size is not None

    @property
    @abstractmethod
    def solving(self) -> Solving:
        """How codes are chosen."""

    @property
    def about(self) -> About:
        """What the result is to say of itself."""
        return About()


class Gated(Settings):
    """The result is held to a quality."""

    gate: Annotated[
        Gates | None,
        Asks(),
        Flag(
            help='A quality gate, e.g. "kl.mean < 0.05"; none for no gate. [default: default '
            "where weights are rounded]"
        ),
    ] = Field(
        None,
        description='quality gates of the result: "default" (against collapse), expressions, or '
        '[]; null: ["default"] where weights are rounded, else []',
    )
    gate_base: Annotated[Literal["parent", "model"], Asks()] = Field(
        "parent", description="what gates compare with: what the step is made from, or the model"
    )
