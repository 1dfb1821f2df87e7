"""llmopt quantize"""

from __future__ import annotations

from typing import Annotated

import typer

from llmopt.cli import options as o
from llmopt.specs import GRIDS, METHODS


def quantize(
    model: o.Model,
    out: o.Out,
    method: Annotated[str | None, typer.Option(help=o.one_of(METHODS, "gptq"))] = None,
    grid: Annotated[str | None, typer.Option(help=o.one_of(GRIDS, "int4"))] = None,
    bits: o.Bits = None,
    group_size: Annotated[
        int | None,
        typer.Option(help="Input channels that share a scale; -1: a row. [default: 128]"),
    ] = None,
    asymmetric: o.Asymmetric = False,
    format_: Annotated[
        str | None,
        typer.Option("--format", help=o.one_of(o.WRITTEN, "gptq")),
    ] = None,
    transform: Annotated[
        str | None,
        typer.Option(help="Done to weights first: awq or none. [default: auto, the method's]"),
    ] = None,
    activations: Annotated[
        str | None,
        typer.Option(
            help="Round activations per token: int8 or fp8, as the grid is. [default: none]"
        ),
    ] = None,
    scale_search: Annotated[
        str | None,
        typer.Option(
            help="minmax, mse or importance. [default: auto, importance where there is text]"
        ),
    ] = None,
    damping: o.Damping = None,
    act_order: Annotated[
        str | None, typer.Option(help="gptq: none, group or full. [default: group]")
    ] = None,
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
    threads: o.Threads = None,
    allow_pickle: o.AllowPickle = False,
    overwrite: o.Overwrite = False,
    print_recipe: o.PrintRecipe = False,
    json: o.Json = False,
    quiet: o.Quiet = False,
    verbose: o.Verbose = False,
) -> None:
    """Quantize a model's weights and check the result against collapse."""
    typed = dict(locals())
    from llmopt.cli.flags import flags, recipe_of
    from llmopt.cli.steps import gates_typed, grid_named, run_single
    from llmopt.errors import Mistakes
    from llmopt.step import RunOptions

    mistakes = Mistakes()
    values = typed | {
        "bits": None,
        "asymmetric": False if asymmetric else None,
        "head": head or None,
        "skip": [{"match": pattern, "skip": True} for pattern in skip or ()] or None,
        "gate": gates_typed(gate),
    }
    with mistakes.gathered():
        values["grid"] = grid_named(grid, bits)
    data = recipe_of("quantize", values, out)
    if evaluation is not None and field is not None:
        data["data"]["evaluation"]["field"] = field
    run_single(
        data, flags("quantize", typed), mistakes, out, RunOptions(device, threads, overwrite),
        allow_pickle=allow_pickle, print_recipe=print_recipe, json=json, quiet=quiet,
    )  # fmt: skip
