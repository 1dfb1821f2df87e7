"""What a recipe may say of a conversion. No torch."""

from __future__ import annotations

from functools import partial
from typing import Annotated, Literal

from pydantic import Field, JsonValue, field_validator, model_validator

from llmopt.errors import RequestError
from llmopt.methods.quantize.settings import Feedback
from llmopt.recipe.fields import (
    ASYMMETRIC,
    BITS,
    Choice,
    Flag,
    From,
    GridId,
    GroupSize,
    PresetId,
    Settings,
    Size,
    Strict,
    TypeId,
    Variant,
    checked,
    written_formats,
)
from llmopt.specs.formats import IMATRIX, PLAIN
from llmopt.specs.gguf_metadata import check_entry, check_text, parsed
from llmopt.specs.presets import PRESETS
from llmopt.verbs.shared.settings import About, Calibrated, Gated, Rounding, Search, Solving


class TypeOverride(Strict):
    """Another type for the tensors of a GGUF file whose name matches; the last match wins."""

    match: str = Field(description='shell pattern on the name in the file, e.g. "blk.*.attn_v.*"')
    type: TypeId = Field(description="the type of its blocks, e.g. Q6_K")


def _type_override(text: str) -> dict[str, object]:
    """--type PATTERN=TYPE as a recipe says it."""
    pattern, equals, type_id = text.rpartition("=")
    if not pattern or not equals:
        hint = f'--type "*.attn_v.*={type_id or "Q6_K"}"'
        raise RequestError(f"{pattern}{equals}{type_id} is not PATTERN=TYPE", hint=hint)
    return {"match": pattern, "type": type_id}


def _metadata(text: str) -> dict[str, object]:
    """--metadata KEY=VALUE as a recipe says it."""
    key, equals, value = text.partition("=")
    if not key or not equals:
        hint = f"--metadata {key or 'general.author'}=VALUE"
        raise RequestError(f"{text} is not KEY=VALUE", hint=hint)
    return {key: parsed(key, value)}


class Target(Settings):
    """What a conversion may say, by what it writes."""


class PlainTarget(Gated, Target):
    """A model of plain tensors."""

    exact: bool = Field(False, description="refuse, before work starts, whatever is not exact")
    dtype: Literal["auto", "float32", "float16", "bfloat16"] = Field(
        "auto", description="of decoded weights; auto: the model's. float32 holds all of them"
    )


class CheckpointTarget(PlainTarget):
    """A checkpoint of quantized tensors."""

    grid: Annotated[GridId | None, BITS] = Field(
        None, description="default: the source's, where the format has it"
    )
    group_size: GroupSize | None = Field(None, description="default: the source's, else 128")
    symmetric: Annotated[bool | None, ASYMMETRIC] = Field(
        None, description="default: the source's, else true"
    )


class GgufTarget(PlainTarget, Rounding):
    """A GGUF file."""

    preset: PresetId | None = Field(
        None, description="the mix of types, e.g. Q4_K_M; default: what holds the source exactly"
    )
    method: Literal["rtn", "gptq"] = Field(
        "rtn", description="how codes are chosen: to nearest, or with errors fed back"
    )
    solver: Annotated[
        Settings, Variant("method", lambda: {"rtn": Settings, "gptq": Feedback}, "method {}")
    ] = Field(default_factory=Settings, description="what the method reads")
    search: Search = Field(
        "best", description="best: in the same layout; reference: what llama.cpp writes"
    )
    imatrix: Annotated[str | None, Flag(metavar="FILE")] = Field(
        None, description="importance matrix of llama.cpp; default: calibration text, where given"
    )
    overrides: Annotated[
        list[TypeOverride], Flag("--type", metavar="PATTERN=TYPE", parse=_type_override)
    ] = Field(
        default_factory=list,
        description='other types for tensors whose name matches, e.g. "blk.*.attn_v.*"',
    )
    candidates: Annotated[list[TypeId], Flag("--candidate", metavar="TYPE")] = Field(
        default_factory=list, description="types that a budget chooses among; []: the usual ones"
    )
    split_size: Annotated[Size | None, Flag(metavar="SIZE")] = Field(
        None, description="largest file: 4GB; default: one file"
    )
    name: str | None = Field(
        None, description="general.name; default: the source's, its card's or its folder's"
    )
    metadata: Annotated[dict[str, JsonValue], Flag(metavar="KEY=VALUE", parse=_metadata)] = Field(
        default_factory=dict, description="further keys of the file, e.g. general.author: Me"
    )

    @field_validator("name")
    @classmethod
    def _says_something(cls, name: str | None) -> str | None:
        return name if name is None else str(checked(lambda: check_text("the name", name)))

    @field_validator("metadata")
    @classmethod
    def _may_be_set(cls, metadata: dict[str, JsonValue]) -> dict[str, JsonValue]:
        return {key: checked(partial(check_entry, key, value)) for key, value in metadata.items()}

    @property
    def feeds_back(self) -> bool:
        """Whether errors are fed back, which takes calibration text."""
        return isinstance(self.solver, Feedback)

    @property
    def solving(self) -> Solving:
        return Solving("gguf", self.method, self.solver, self.search)

    @property
    def about(self) -> About:
        return About(name=self.name, metadata=self.metadata)


class PlannedGguf(GgufTarget):
    """With nothing left to decide: an importance matrix has a digest, which stands elsewhere."""

    model_name: str = Field(description="what the model is called where nothing says a name")
    imatrix: None = Field(None, description="a file")

    @property
    def about(self) -> About:
        return About(self.model_name, self.name, self.metadata)


class ImatrixTarget(Calibrated, Target):
    """An importance matrix."""


def _targets() -> dict[str, type[Target]]:
    """What may be converted to, as recipes may write it."""
    found: dict[str, type[Target]] = dict.fromkeys(written_formats(), CheckpointTarget)
    found |= {PLAIN: PlainTarget, "gguf": GgufTarget}
    return found | {f"gguf:{preset}": GgufTarget for preset in PRESETS} | {IMATRIX: ImatrixTarget}


def _target_ids() -> list[str]:
    return [target for target in _targets() if ":" not in target]


class ConvertSettings(Settings):
    """Another layout of the same values; what that cannot hold is rounded anew, and reported."""

    from_: From = Field("model", alias="from", description="the model, or a step's id")
    to: Annotated[str, Choice("target", _target_ids, _targets)] = Field(
        description="how the result lies on disk; hf: plain tensors; gguf:Q4_K_M names a "
        "preset; imatrix: an importance matrix for llama.cpp's tools"
    )
    target: Annotated[Target, Variant("to", _targets, "a conversion to {}")] = Field(
        default_factory=Target, description="what such a result may have"
    )

    @model_validator(mode="before")
    @classmethod
    def _preset_in_target(cls, data: object) -> object:
        """to: gguf:Q4_K_M is short for to: gguf, preset: Q4_K_M."""
        if not isinstance(data, dict):
            return data
        preset = str(data.get("to")).removeprefix("gguf:")
        if preset == str(data.get("to")):
            return data
        if "preset" in data:
            raise ValueError("the preset is given twice: in `to`, and as `preset`")
        return {**data, "to": "gguf", "preset": preset}


SETTINGS = ConvertSettings
