"""What a recipe may say of thinning. No torch."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from llmopt.recipe.fields import Asks, Flag, Gates, Input, Settings


class ThinSettings(Settings):
    """One decoder layer less, and narrower MLPs."""

    from_: Annotated[str, Input("model")] = Field(
        "model", alias="from", description="the model, or a step's id"
    )
    teacher: Annotated[str, Input("teacher", outside=True)] = Field(
        "model", description="a model of the same shapes, whose weights say which channels stay"
    )
    layer: int = Field(ge=0, description="the decoder layer that goes")
    width: int = Field(ge=1, description="channels of each MLP that stay")
    score: Annotated[bool, Flag(off="--no-score"), Asks()] = Field(
        True, description="measure the result against the teacher"
    )
    gate: Annotated[Gates, Asks()] = Field(
        default_factory=list, description="quality gates of the result"
    )


SETTINGS = ThinSettings
