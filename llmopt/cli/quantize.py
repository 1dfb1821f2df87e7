"""llmopt quantize"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from llmopt.cli import options as o
from llmopt.errors import RequestError


def quantize(
    model: Annotated[str, typer.Argument(help="A folder, a hub id, or demo.")],
    out: Annotated[Path, typer.Option("-o", "--out", help="Folder to write.")],
    method: Annotated[str | None, typer.Option(help="gptq or rtn. [default: gptq]")] = None,
    grid: Annotated[
        str | None, typer.Option(help="int2, int3, int4, int8. [default: int4]")
    ] = None,
    bits: Annotated[int | None, typer.Option(help="--bits 4 is short for --grid int4.")] = None,
    group_size: Annotated[
        int | None,
        typer.Option(help="Input channels that share a scale; -1: a row. [default: 128]"),
    ] = None,
    asymmetric: Annotated[
        bool, typer.Option("--asymmetric", help="A zero point per group.")
    ] = False,
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
    damping: Annotated[
        float | None, typer.Option(help="gptq: share of the mean Hessian diagonal.")
    ] = None,
    act_order: Annotated[str | None, typer.Option(help="gptq: none, group or full.")] = None,
    refine: Annotated[int | None, typer.Option(help="gptq: sweeps after error feedback.")] = None,
    target_bpw: Annotated[
        float | None,
        typer.Option(help="Choose settings per linear: stored bits a weight, at most this."),
    ] = None,
    target_size: Annotated[
        str | None,
        typer.Option(metavar="SIZE", help="The same for the weight files as a whole, e.g. 5MB."),
    ] = None,
    candidate: Annotated[
        list[str] | None,
        typer.Option(metavar="SETTING", help='What a target chooses among, e.g. "int4 g32".'),
    ] = None,
    skip: Annotated[
        list[str] | None,
        typer.Option(metavar="PATTERN", help="Leave matching linears as they are."),
    ] = None,
    head: Annotated[bool, typer.Option("--head", help="Quantize the output head too.")] = False,
    gate: Annotated[
        list[str] | None,
        typer.Option(help='A quality gate, e.g. "kl.mean < 0.05"; none for no gate.'),
    ] = None,
    calibration: o.Calibration = None,
    field: o.Field = None,
    sequences: Annotated[
        int | None, typer.Option(help="Calibration sequences. [default: 128]")
    ] = None,
    length: Annotated[int | None, typer.Option(help="Tokens a sequence. [default: 512]")] = None,
    evaluation: o.Evaluation = None,
    seed: o.Seed = None,
    revision: Annotated[str | None, typer.Option(help="Hub branch, tag or commit.")] = None,
    device: o.Device = "auto",
    allow_pickle: o.AllowPickle = False,
    print_recipe: o.PrintRecipe = False,
    json: o.Json = False,
    quiet: o.Quiet = False,
    verbose: o.Verbose = False,
) -> None:
    """Quantize a model's weights and check the result against collapse."""
    from llmopt.cli.steps import given, run_single

    if bits is not None and grid is not None:
        raise RequestError("--bits and --grid say the same thing: give one of them")
    settings: dict[str, Any] = given(
        method=method,
        grid=grid if bits is None else f"int{bits}",
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
    data = given(
        calibration=given(source=calibration, field=field, sequences=sequences, length=length),
        evaluation=given(source=evaluation, field=field if evaluation else None),
    )
    recipe = given(model=model, revision=revision, seed=seed, data=data)
    run_single(
        recipe, "quantize", settings, out, device=device, allow_pickle=allow_pickle,
        print_recipe=print_recipe, json=json, quiet=quiet,
    )  # fmt: skip
