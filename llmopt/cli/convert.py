"""llmopt convert"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from llmopt.cli import options as o
from llmopt.errors import RequestError


def convert(
    model: o.Model,
    out: Annotated[Path, typer.Option("-o", "--out", help="Folder to write, or a .gguf file.")],
    to: Annotated[
        str,
        typer.Option(
            help="gguf:Q4_K_M, gptq, awq, compressed-tensors, ..., or hf for plain tensors."
        ),
    ],
    exact: Annotated[
        bool, typer.Option("--exact", help="Refuse, before work starts, whatever is not exact.")
    ] = False,
    grid: Annotated[
        str | None, typer.Option(help="Where it has to be rounded. [default: the source's]")
    ] = None,
    bits: o.Bits = None,
    group_size: Annotated[
        int | None,
        typer.Option(help="Input channels that share a scale. [default: the source's]"),
    ] = None,
    asymmetric: o.Asymmetric = False,
    dtype: Annotated[
        str | None,
        typer.Option(help="Of decoded weights: float32 holds them all. [default: the model's]"),
    ] = None,
    method: Annotated[
        str | None, typer.Option(help="gguf: rtn, or gptq for error feedback. [default: rtn]")
    ] = None,
    search: Annotated[
        str | None,
        typer.Option(help="gguf: best, or reference for what llama.cpp writes. [default: best]"),
    ] = None,
    imatrix: Annotated[
        Path | None,
        typer.Option(help="gguf: an importance matrix of llama.cpp. [default: calibration text]"),
    ] = None,
    type_: Annotated[
        list[str] | None,
        typer.Option(
            "--type", metavar="PATTERN=TYPE", help='gguf: e.g. "blk.*.attn_v.*=Q6_K"; repeatable.'
        ),
    ] = None,
    split_size: Annotated[
        str | None, typer.Option(metavar="SIZE", help="gguf: the largest file, e.g. 4GB.")
    ] = None,
    damping: o.Damping = None,
    refine: o.Refine = None,
    target_bpw: o.TargetBpw = None,
    target_size: o.TargetSize = None,
    candidate: o.Candidates = None,
    gate: Annotated[
        list[str] | None,
        typer.Option(
            help="A quality gate; none for none. [default: default where weights are rounded]"
        ),
    ] = None,
    calibration: o.Calibration = None,
    field: o.Field = None,
    sequences: o.Sequences = None,
    length: o.SequenceLength = None,
    evaluation: o.Evaluation = None,
    seed: o.Seed = None,
    revision: o.Revision = None,
    device: o.Device = "auto",
    allow_pickle: o.AllowPickle = False,
    print_recipe: o.PrintRecipe = False,
    json: o.Json = False,
    quiet: o.Quiet = False,
    verbose: o.Verbose = False,
) -> None:
    """Write the same weights in another layout; what that cannot hold is rounded and reported."""
    from llmopt.cli.steps import given, grid_named, run_single, texts

    settings = given(
        to=to,
        exact=exact or None,
        grid=grid_named(grid, bits),
        group_size=group_size,
        symmetric=False if asymmetric else None,
        dtype=dtype,
        method=method,
        search=search,
        imatrix=None if imatrix is None else str(imatrix),
        overrides=_overrides(type_),
        split_size=split_size,
        damping=damping,
        refine=refine,
        target_bpw=target_bpw,
        target_size=target_size,
        candidates=candidate,
        gate=[] if gate == ["none"] else gate,
    )
    if imatrix is not None and calibration is not None:
        raise RequestError(
            "--imatrix takes the place of calibration text", hint="leave out --calibration"
        )
    data = texts(calibration, evaluation, field=field, sequences=sequences, length=length)
    recipe = given(model=model, revision=revision, seed=seed, data=data)
    run_single(
        recipe, "convert", settings, out, device=device, allow_pickle=allow_pickle,
        print_recipe=print_recipe, json=json, quiet=quiet,
    )  # fmt: skip


def _overrides(typed: list[str] | None) -> list[dict[str, Any]] | None:
    """--type PATTERN=TYPE as a recipe says it."""
    pairs = [text.rpartition("=") for text in typed or ()]
    for pattern, equals, type_id in pairs:
        if not pattern or not equals:
            raise RequestError(
                f"--type {type_id}: this says no tensors",
                hint=f"--type PATTERN={type_id or 'TYPE'}",
            )
    return [{"match": pattern, "type": type_id} for pattern, _, type_id in pairs] or None
