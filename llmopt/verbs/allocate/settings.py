"""What another verb's plan asks of an allocation. No torch."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, SerializeAsAny

from llmopt.recipe.fields import Input, Settings


class AllocateSettings(Settings):
    """The budget of a step, and all that says how its linears are going to be quantized."""

    from_: Annotated[str, Input("model")] = Field(
        "model", alias="from", description="the model, or a step's id"
    )
    format: str = Field(description="how the result lies on disk")
    target_bpw: float | None = Field(None, description="stored bits a quantized weight")
    target_size: int | None = Field(None, description="bytes of the weight files as a whole")
    batch_size: int = Field(description="calibration sequences run at once")
    solving: SerializeAsAny[Settings] = Field(
        description="the effective settings of the step that asks"
    )


SETTINGS = AllocateSettings
