"""What another verb's plan asks of an allocation. No torch."""

from __future__ import annotations

from pydantic import Field, InstanceOf, JsonValue

from llmopt.recipe.fields import From, Settings
from llmopt.verbs.shared.settings import Rounding


class AllocateSettings(Settings):
    """The step whose linears get settings: all that says how they are going to be rounded."""

    from_: From = Field("model", alias="from", description="the model, or a step's id")
    asking: InstanceOf[Rounding] = Field(description="the effective settings of the step that asks")

    def document(self) -> dict[str, JsonValue]:
        return self.asking.document()


SETTINGS = AllocateSettings
