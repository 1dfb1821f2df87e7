"""What a recipe may say. Strict: unknown keys, wrong types and wrong values are errors."""

from __future__ import annotations

from functools import partial
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, field_validator, model_validator

from llmopt.recipe.fields import (
    Choice,
    FormatId,
    Gate,
    Gates,
    GridId,
    GroupSize,
    MethodId,
    Names,
    PresetId,
    RuntimeId,
    Settings,
    Size,
    StepId,
    Strict,
    TypeId,
    checked,
    written_formats,
)
from llmopt.specs.formats import IMATRIX, PLAIN
from llmopt.specs.gguf_metadata import check_entry, check_text
from llmopt.specs.presets import PRESETS
from llmopt.specs.runtimes import AUTO

RESERVED_IDS = frozenset({"model", "report"})


def _whole(value: Any) -> Any:
    """Python's 1 == 1.0 == True is no reason to take these for a version."""
    if isinstance(value, (bool, float)):
        raise ValueError(f"input should be 1, not {value}")
    return value


def _targets() -> list[str]:
    return [*written_formats(), PLAIN, "gguf", IMATRIX]


def _spelled_targets() -> list[str]:
    return [*written_formats(), PLAIN, "gguf", *(f"gguf:{preset}" for preset in PRESETS), IMATRIX]


TargetId = Annotated[str, Choice("target", _targets, _spelled_targets)]

_TEXTS = "demo, a text, .jsonl, .json, .csv or .tsv file (also .gz, .bz2, .xz, .zst), or a data set"
_FIELD = "column of the texts or conversations; where text is not there: that of the conversations"


class CalibrationData(Strict):
    """Text that statistics are collected on."""

    source: str = Field("", description=f"{_TEXTS}; empty: none")
    field: str = Field("text", description=_FIELD)
    sequences: int = Field(128, ge=1, description="how many sequences")
    length: int = Field(512, ge=8, description="tokens a sequence; at most the model's context")


class EvaluationData(Strict):
    """Held-out text that quality is measured on."""

    source: str = Field("demo", description=_TEXTS)
    field: str = Field("text", description=_FIELD)
    windows: int = Field(64, ge=2, description="how many windows; intervals resample windows")
    length: int = Field(512, ge=8, description="tokens a window; at most the model's context")


class Data(Strict):
    calibration: CalibrationData = CalibrationData()
    evaluation: EvaluationData = EvaluationData()


class Override(Strict):
    """Other settings for the linears whose name matches a pattern; the last match wins."""

    match: str = Field(description='shell pattern on the full name, e.g. "*.mlp.down_proj"')
    grid: GridId | None = None
    group_size: GroupSize | None = None
    symmetric: bool | None = None
    skip: bool = Field(False, description="leave these linears as they are")


class QuantizeStep(Settings):
    from_: str = Field("model", alias="from", description="the model, or a step's id")
    method: MethodId = Field("gptq", description="how codes are chosen")
    transform: Literal["auto", "none", "awq"] = Field(
        "auto", description="what is done to weights first; auto: what the method asks for"
    )
    grid: GridId = Field("int4", description="which values a weight may take")
    group_size: GroupSize = Field(128, description="input channels that share a scale; -1: a row")
    symmetric: bool = Field(True, description="fixed zero point; false: a zero point per group")
    format: FormatId = Field("gptq", description="how the result lies on disk")
    activations: Literal["none", "int8", "fp8"] = Field(
        "none", description="grid that activations are rounded to, per token, when it computes"
    )
    scale_search: Literal["auto", "minmax", "mse", "importance"] = Field(
        "auto", description="auto: importance where there is calibration text, else mse"
    )
    signed_scales: bool = Field(True, description="allow negative scales on a symmetric grid")
    damping: float = Field(0.01, gt=0, lt=1, description="share of the mean Hessian diagonal")
    act_order: Literal["none", "group", "full"] = Field(
        "group", description="column order: stored; by activation within groups; by activation"
    )
    static_groups: bool = Field(False, description="fit all scales before any feedback")
    refine: int = Field(2, ge=0, le=20, description="sweeps over scales and codes after feedback")
    true_sequential: bool = Field(
        True, description="statistics of each linear see the quantized ones before it"
    )
    target_bpw: float | None = Field(
        None, gt=0, le=16, description="stored bits a quantized weight, scales and all; a budget"
    )
    target_size: Size | None = Field(
        None, description="budget for the weight files as a whole: 5MB, 1.5GiB, or bytes"
    )
    candidates: list[str] = Field(
        default_factory=list,
        description='what a budget chooses among, as "int4 g32", "int3 row"; []: the usual ones',
    )
    overrides: list[Override] = Field(default_factory=list)
    head: bool = Field(False, description="quantize the output head too")
    embeddings: bool = Field(False, description="quantize the input embeddings too")
    batch_size: int = Field(2, ge=1, description="calibration sequences run at once")
    gate: Gates = Field(
        default_factory=lambda: ["default"],
        description='quality gates of the result: "default" (against collapse), expressions, or []',
    )

    @property
    def has_budget(self) -> bool:
        """Whether settings are chosen for each linear so that all together meet a target."""
        return self.target_bpw is not None or self.target_size is not None


class TypeOverride(Strict):
    """Another type for the tensors of a GGUF file whose name matches; the last match wins."""

    match: str = Field(description='shell pattern on the name in the file, e.g. "blk.*.attn_v.*"')
    type: TypeId


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
    imatrix: str | None = Field(
        None, description="importance matrix of llama.cpp; default: calibration text, where given"
    )
    overrides: list[TypeOverride] = Field(default_factory=list)
    target_bpw: float | None = Field(
        None, gt=0, le=32, description="stored bits a weight of the linears; a budget"
    )
    target_size: Size | None = Field(None, description="budget for the file: 5MB, 1.5GiB")
    candidates: list[TypeId] = Field(
        default_factory=list, description="types that a budget chooses among; []: the usual ones"
    )
    damping: float | None = Field(None, gt=0, lt=1, description="gptq; default: 0.01")
    refine: int | None = Field(None, ge=0, le=20, description="gptq: sweeps; default: 2")
    batch_size: int = Field(2, ge=1, description="calibration sequences run at once")
    split_size: Size | None = Field(None, description="largest file: 4GB; default: one file")
    name: str | None = Field(
        None, description="general.name; default: the source's, its card's or its folder's"
    )
    metadata: dict[str, Any] = Field(
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


class ConvertStep(GgufSettings):
    """Another layout of the same values; what that cannot hold is rounded anew, and reported."""

    from_: str = Field("model", alias="from", description="the model, or a step's id")
    to: TargetId = Field(
        description="how the result lies on disk; hf: plain tensors; gguf:Q4_K_M names a "
        "preset; imatrix: an importance matrix for llama.cpp's tools"
    )
    exact: bool = Field(False, description="refuse, before work starts, whatever is not exact")
    grid: GridId | None = Field(None, description="default: the source's, where the format has it")
    group_size: GroupSize | None = Field(None, description="default: the source's, else 128")
    symmetric: bool | None = Field(None, description="default: the source's, else true")
    dtype: Literal["auto", "float32", "float16", "bfloat16"] = Field(
        "auto", description="of decoded weights; auto: the model's. float32 holds all of them"
    )
    gate: Gates | None = Field(
        None, description='as in quantize; null: ["default"] where weights are rounded, else []'
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


class BenchStep(Settings):
    from_: Names = Field(default_factory=list, alias="from", description="steps to measure")
    against: str | None = Field("model", description="the base of KL and agreement; null: none")
    runtime: RuntimeId = Field(
        AUTO, description="auto: llama.cpp for GGUF, where it is installed; torch for the rest"
    )
    speed: bool = Field(True, description="measure speed and memory too")
    new_tokens: int = Field(64, ge=2, le=4096, description="tokens decoded per speed repeat")
    gates: list[Gate] = Field(default_factory=list, description='e.g. "kl.mean < 0.05"')


Verb = Literal["quantize", "convert", "bench"]
VERBS: tuple[Verb, ...] = ("quantize", "convert", "bench")


class Step(Strict):
    id: StepId
    matrix: dict[str, list[Any]] = Field(
        default_factory=dict, description="a setting -> values: one step per combination"
    )
    quantize: QuantizeStep | None = None
    convert: ConvertStep | None = None
    bench: BenchStep | None = None

    @model_validator(mode="before")
    @classmethod
    def _vary_required(cls, data: Any) -> Any:
        """A setting that has no default may come from the matrix alone: its first value stands."""
        matrix = data.get("matrix") if isinstance(data, dict) else None
        settings = data.get("convert") if isinstance(matrix, dict) else None
        varied = matrix.get("to") if isinstance(matrix, dict) else None
        if isinstance(settings, dict) and "to" not in settings and isinstance(varied, list):
            return data | {"convert": settings | {"to": next(iter(varied), PLAIN)}}
        return data

    @model_validator(mode="after")
    def _one_verb(self) -> Step:
        given = [verb for verb in VERBS if getattr(self, verb) is not None]
        if len(given) != 1:
            found = f"has {' and '.join(given)}" if given else "has none"
            raise ValueError(f"a step has exactly one of {', '.join(VERBS)}; this one {found}")
        return self

    @property
    def verb(self) -> Verb:
        return next(verb for verb in VERBS if getattr(self, verb) is not None)

    @property
    def settings(self) -> QuantizeStep | ConvertStep | BenchStep:
        settings: QuantizeStep | ConvertStep | BenchStep = getattr(self, self.verb)
        return settings


class Recipe(Strict):
    version: Annotated[Literal[1], BeforeValidator(_whole)]
    name: str = Field("recipe", description="what reports call this")
    model: str = Field(description="a directory, hub id, artifact, or demo")
    revision: str | None = Field(None, description="hub branch, tag or commit")
    seed: int = Field(0, ge=0, lt=1 << 63)
    data: Data = Data()
    steps: list[Step] = Field(min_length=1)
