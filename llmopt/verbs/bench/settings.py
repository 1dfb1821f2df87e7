"""What a recipe may say of a measurement. No torch."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from llmopt.recipe.fields import Flag, Gate, Input, Names, RuntimeId, Settings
from llmopt.specs.runtimes import AUTO


class BenchSettings(Settings):
    """Quality against a base, size, speed and memory."""

    from_: Annotated[Names, Input("model", outside=True)] = Field(
        default_factory=list, alias="from", description="steps to measure"
    )
    against: Annotated[
        str | None,
        Input("base"),
        Flag(help="The base of KL and agreement. [default: the artifact's own source]"),
    ] = Field("model", description="the base of KL and agreement; null: none")
    runtime: RuntimeId = Field(
        AUTO, description="auto: llama.cpp for GGUF, where it is installed; torch for the rest"
    )
    speed: Annotated[bool, Flag(off="--no-speed")] = Field(
        True, description="measure speed and memory too"
    )
    new_tokens: int = Field(64, ge=2, le=4096, description="tokens decoded per speed repeat")
    gates: Annotated[
        list[Gate],
        Flag("--gate", help='Fail with exit 3 unless this holds, e.g. "kl.mean < 0.05".'),
    ] = Field(default_factory=list, description='e.g. "kl.mean < 0.05"')


class Benchmark(Settings):
    """With nothing left to decide. `runtimes`: what each model runs on, by its name."""

    runtimes: dict[str, str] = Field(description="what each model runs on")
    speed: bool = Field(description="measure speed and memory too")
    new_tokens: int = Field(description="tokens decoded per speed repeat")
    gates: list[Gate] = Field(description="what each model is held to")


SETTINGS = BenchSettings
