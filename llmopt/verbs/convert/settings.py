"""What a recipe may say of a conversion. No torch."""

from __future__ import annotations

from functools import partial
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from llmopt.errors import RequestError
from llmopt.recipe.fields import (
    Asks,
    Choice,
    Flag,
    Gates,
    GridId,
    GroupSize,
    Input,
    PresetId,
    Settings,
    Short,
    Size,
    Strict,
    TypeId,
    bits_of_grid,
    checked,
    written_formats,
)
from llmopt.specs.formats import IMATRIX, PLAIN
from llmopt.specs.gguf_metadata import check_entry, check_text, parsed
from llmopt.specs.presets import PRESETS


def _targets() -> list[str]:
    return [*written_formats(), PLAIN, "gguf", IMATRIX]


def _spelled_targets() -> list[str]:
    return [*written_formats(), PLAIN, "gguf", *(f"gguf:{preset}" for preset in PRESETS), IMATRIX]


TargetId = Annotated[str, Choice("target", _targets, _spelled_targets)]


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


class GgufSettings(Settings):
    """What only conversions to GGUF have."""

    preset: PresetId | None = Field(
        None, description="the mix of types, e.g. Q4_K_M; default: what holds the source exactly"
    )
    method: Literal["rtn", "gptq"] | None = Field(
        None, description="how codes are chosen; default: rtn. gptq feeds errors back"
    )
    search: Literal["best", "reference"] | None = Field(
        None, description="default: best, in the same layout; reference: what llama.cpp writes"
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
    target_bpw: float | None = Field(
        None, gt=0, le=32, description="stored bits a weight of the linears; a budget"
    )
    target_size: Annotated[Size | None, Flag(metavar="SIZE")] = Field(
        None, description="budget for the file: 5MB, 1.5GiB"
    )
    candidates: Annotated[list[TypeId], Flag("--candidate", metavar="TYPE")] = Field(
        default_factory=list, description="types that a budget chooses among; []: the usual ones"
    )
    damping: float | None = Field(None, gt=0, lt=1, description="gptq; default: 0.01")
    refine: int | None = Field(None, ge=0, le=20, description="gptq: sweeps; default: 2")
    batch_size: int = Field(2, ge=1, description="calibration sequences run at once")
    split_size: Annotated[Size | None, Flag(metavar="SIZE")] = Field(
        None, description="largest file: 4GB; default: one file"
    )
    name: str | None = Field(
        None, description="general.name; default: the source's, its card's or its folder's"
    )
    metadata: Annotated[dict[str, Any], Flag(metavar="KEY=VALUE", parse=_metadata)] = Field(
        default_factory=dict, description="further keys of the file, e.g. general.author: Me"
    )

    @field_validator("name")
    @classmethod
    def _says_something(cls, name: str | None) -> str | None:
        return name if name is None else str(checked(lambda: check_text("the name", name)))

    @field_validator("metadata")
    @classmethod
    def _may_be_set(cls, metadata: dict[str, Any]) -> dict[str, Any]:
        return {key: checked(partial(check_entry, key, value)) for key, value in metadata.items()}

    @property
    def has_budget(self) -> bool:
        """Whether types are chosen for each linear so that all together meet a target."""
        return self.target_bpw is not None or self.target_size is not None


class ConvertSettings(GgufSettings):
    """Another layout of the same values; what that cannot hold is rounded anew, and reported."""

    from_: Annotated[str, Input("model")] = Field(
        "model", alias="from", description="the model, or a step's id"
    )
    to: TargetId = Field(
        description="how the result lies on disk; hf: plain tensors; gguf:Q4_K_M names a "
        "preset; imatrix: an importance matrix for llama.cpp's tools"
    )
    exact: bool = Field(False, description="refuse, before work starts, whatever is not exact")
    grid: Annotated[
        GridId | None,
        Short("--bits", bits_of_grid, metavar="BITS", help="--bits 4 is short for --grid int4."),
    ] = Field(None, description="default: the source's, where the format has it")
    group_size: GroupSize | None = Field(None, description="default: the source's, else 128")
    symmetric: Annotated[bool | None, Flag(off="--asymmetric", help="A zero point per group.")] = (
        Field(None, description="default: the source's, else true")
    )
    dtype: Literal["auto", "float32", "float16", "bfloat16"] = Field(
        "auto", description="of decoded weights; auto: the model's. float32 holds all of them"
    )
    gate: Annotated[
        Gates | None,
        Asks(),
        Flag(help="A quality gate; none for none. [default: default where weights are rounded]"),
    ] = Field(
        None, description='as in quantize; null: ["default"] where weights are rounded, else []'
    )
    gate_base: Annotated[Literal["parent", "model"], Asks()] = Field(
        "parent", description="what gates compare with: what the step is made from, or the model"
    )

    @model_validator(mode="before")
    @classmethod
    def _preset_in_target(cls, data: Any) -> Any:
        """to: gguf:Q4_K_M is short for to: gguf, preset: Q4_K_M."""
        target = data.get("to") if isinstance(data, dict) else None
        if not isinstance(target, str) or not target.startswith("gguf:"):
            return data
        if "preset" in data:
            raise ValueError("the preset is given twice: in `to`, and as `preset`")
        return data | {"to": "gguf", "preset": target.removeprefix("gguf:")}


class PlannedConvert(ConvertSettings):
    """With nothing left to decide. `model_name`: what the recipe's model is called."""

    model_name: str = Field("", description="the name of a file's model where nothing says one")
    format: str = Field("", description="how the result lies on disk")


SETTINGS = ConvertSettings
