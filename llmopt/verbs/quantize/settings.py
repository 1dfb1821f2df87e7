"""What a recipe may say of a quantization. No torch."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from llmopt.errors import RequestError
from llmopt.methods.quantize.settings import MethodSettings
from llmopt.recipe.fields import (
    ASYMMETRIC,
    BITS,
    ActivationsId,
    Flag,
    FormatId,
    From,
    GridId,
    GroupSize,
    MethodId,
    Settings,
    Short,
    Strict,
    TransformId,
    Variant,
)
from llmopt.specs import METHODS
from llmopt.specs.base import load_class
from llmopt.verbs.shared.settings import Gated, Rounding, Solving


class Override(Strict):
    """Other settings for the linears whose name matches a pattern; the last match wins."""

    match: str = Field(description='shell pattern on the full name, e.g. "*.mlp.down_proj"')
    grid: GridId | None = Field(None, description="another grid")
    group_size: GroupSize | None = Field(None, description="another group size")
    symmetric: bool | None = Field(None, description="with or without zero points")
    skip: bool = Field(False, description="leave these linears as they are")


def _override(text: str) -> dict[str, object]:
    """`PATTERN: grid=int8, group_size=32` or `PATTERN: skip` as a recipe says it."""
    pattern, colon, said = (part.strip() for part in text.rpartition(":"))
    override: dict[str, object] = {"match": pattern}
    for part in said.split(","):
        name, equals, value = (word.strip() for word in part.partition("="))
        if not pattern or not colon or not name or (equals and not value):
            hint = "--override '*.down_proj: grid=int8, group_size=32', or '*.down_proj: skip'"
            raise RequestError(f"{text} is not PATTERN: KEY=VALUE, ...", hint=hint)
        override[name] = _value(value) if equals else True
    return override


def _value(text: str) -> object:
    if text in ("true", "false"):
        return text == "true"
    return int(text) if text.lstrip("-").isdecimal() else text


def _methods() -> dict[str, type[MethodSettings]]:
    return {id_: load_class(spec.settings, MethodSettings) for id_, spec in METHODS.items()}


class QuantizeSettings(Gated, Rounding):
    """Codes for the linears of a model, and a check of the result."""

    from_: From = Field("model", alias="from", description="the model, or a step's id")
    method: MethodId = Field("gptq", description="how codes are chosen")
    solver: Annotated[Settings, Variant("method", _methods, "method {}")] = Field(
        default_factory=MethodSettings, description="what the method reads"
    )
    transform: TransformId = Field(
        "auto", description="what is done to weights first; auto: what the method asks for"
    )
    grid: Annotated[GridId, BITS] = Field("int4", description="which values a weight may take")
    group_size: GroupSize = Field(128, description="input channels that share a scale; -1: a row")
    symmetric: Annotated[bool, ASYMMETRIC] = Field(
        True, description="fixed zero point; false: a zero point per group"
    )
    format: FormatId = Field("gptq", description="how the result lies on disk")
    activations: ActivationsId = Field(
        "none", description="grid that activations are rounded to, per token, when it computes"
    )
    candidates: Annotated[list[str], Flag("--candidate", metavar="SETTING")] = Field(
        default_factory=list,
        description='what a budget chooses among, as "int4 g32", "int3 row"; []: the usual ones',
    )
    overrides: Annotated[
        list[Override],
        Flag("--override", metavar="PATTERN: KEY=VALUE, ...", parse=_override),
        Short(
            "--skip",
            lambda pattern: {"match": pattern, "skip": True},
            metavar="PATTERN",
            help="Leave matching linears as they are.",
        ),
    ] = Field(
        default_factory=list,
        description="other settings for linears whose name matches a pattern; the last one wins",
    )
    head: bool = Field(False, description="quantize the output head too")
    embeddings: bool = Field(False, description="quantize the input embeddings too")

    @property
    def solving(self) -> Solving:
        return Solving(self.format, self.method, self.solver)


SETTINGS = QuantizeSettings
