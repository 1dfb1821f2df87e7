"""llmopt quantize"""

from __future__ import annotations

from typing import Annotated, Any

import typer

from llmopt.cli import options as o


def quantize(
    model: o.Model,
    out: o.Out,
    method: Annotated[str | None, typer.Option(help="gptq or rtn. [default: gptq]")] = None,
    grid: Annotated[
        str | None, typer.Option(help="int2, int3, int4, int8. [default: int4]")
    ] = None,
    bits: o.Bits = None,
    group_size: Annotated[
        int | None,
        typer.Option(help="Input channels that share a scale; -1: a row. [default: 128]"),
    ] = None,
    asymmetric: o.Asymmetric = False,
    format_: Annotated[
        str | None,
        typer.Option("--format", help="gptq, gptq_v2, awq, compressed-tensors. [default: gptq]"),
    ] = None,
    transform: Annotated[
        str | None, typer.Option(help="Done to weights first: awq, none. [default: the method's]")
    ] = None,
    activations: Annotated[
        str | None,
        typer.Option(help="Round activations per token: int8 or fp8, as the grid. [default: none]"),
    ] = None,
    scale_search: Annotated[str | None, typer.Option(help="minmax, mse or importance.")] = None,
    damping: o.Damping = None,
    act_order: Annotated[str | None, typer.Option(help="gptq: none, group or full.")] = None,
    refine: o.Refine = None,
    target_bpw: o.TargetBpw = None,
    target_size: o.TargetSize = None,
    candidate: o.Candidates = None,
    skip: Annotated[
        list[str] | None,
        typer.Option(metavar="PATTERN", help="Leave matching linears as they are."),
    ] = None,
    head: Annotated[bool, typer.Option("--head", help="Quantize the output head too.")] = False,
    gate: o.Gates = None,
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
    """Quantize a model's weights and check the result against collapse."""
    from llmopt.cli.steps import given, grid_named, run_single, texts

    settings: dict[str, Any] = given(
        method=method,
        grid=grid_named(grid, bits),
        group_size=group_size,
        symmetric=False if asymmetric else None,
        format=format_,
        activations=activations,
        transform=transform,
        scale_search=scale_search,
        damping=damping,
        act_order=act_order,
        refine=refine,
        target_bpw=target_bpw,
        target_size=target_size,
        candidates=candidate,
        head=head or None,
        overrides=[{"match": pattern, "skip": True} for pattern in skip or ()] or None,
        gate=[] if gate == ["none"] else gate,
    )
    data = texts(calibration, evaluation, field=field, sequences=sequences, length=length)
    recipe = given(model=model, revision=revision, seed=seed, data=data)
    run_single(
        recipe, "quantize", settings, out, device=device, allow_pickle=allow_pickle,
        print_recipe=print_recipe, json=json, quiet=quiet,
    )  # fmt: skip
