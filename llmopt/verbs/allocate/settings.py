"""What another verb's plan asks of an allocation. No torch."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, InstanceOf, JsonValue

from llmopt.recipe.fields import Input, Settings
from llmopt.verbs.shared.settings import Rounding


class AllocateSettings(Settings):
    """The step whose linears get settings: all that says how they are going to be rounded."""

    from_: Annotated[str, Input("model")] = Field(
        "model", alias="from", description="the model, or a step's id"
    )
    asking: InstanceOf[Rounding] = Field(description="the effective settings of the step that asks")

    def document(self) -> dict[str, JsonValue]:
        return self.asking.document()


SETTINGS = AllocateSettings
