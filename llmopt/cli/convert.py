"""llmopt convert"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from llmopt.cli import options as o
from llmopt.errors import RequestError


def convert(
    model: Annotated[str, typer.Argument(help="A folder, a hub id, or demo.")],
    out: Annotated[Path, typer.Option("-o", "--out", help="Folder to write.")],
    to: Annotated[
        str,
        typer.Option(help="gptq, gptq_v2, awq, compressed-tensors, ..., or hf for plain tensors."),
    ],
    exact: Annotated[
        bool, typer.Option("--exact", help="Refuse, before work starts, whatever is not exact.")
    ] = False,
    grid: Annotated[
        str | None, typer.Option(help="Where it has to be rounded. [default: the source's]")
    ] = None,
    bits: Annotated[int | None, typer.Option(help="--bits 4 is short for --grid int4.")] = None,
    group_size: Annotated[
        int | None,
        typer.Option(help="Input channels that share a scale. [default: the source's]"),
    ] = None,
    asymmetric: Annotated[
        bool, typer.Option("--asymmetric", help="A zero point per group.")
    ] = False,
    dtype: Annotated[
        str | None,
        typer.Option(help="Of decoded weights: float32 holds them all. [default: the model's]"),
    ] = None,
    gate: Annotated[
        list[str] | None,
        typer.Option(
            help="A quality gate; none for none. [default: default where weights are rounded]"
        ),
    ] = None,
    evaluation: o.Evaluation = None,
    revision: Annotated[str | None, typer.Option(help="Hub branch, tag or commit.")] = None,
    device: o.Device = "auto",
    allow_pickle: o.AllowPickle = False,
    print_recipe: o.PrintRecipe = False,
    json: o.Json = False,
    quiet: o.Quiet = False,
    verbose: o.Verbose = False,
) -> None:
    """Write the same weights in another layout; what that cannot hold is rounded and reported."""
    from llmopt.cli.steps import given, run_single

    if bits is not None and grid is not None:
        raise RequestError("--bits and --grid say the same thing: give one of them")
    settings = given(
        to=to,
        exact=exact or None,
        grid=grid if bits is None else f"int{bits}",
        group_size=group_size,
        symmetric=False if asymmetric else None,
        dtype=dtype,
        gate=[] if gate == ["none"] else gate,
    )
    data = given(evaluation=given(source=evaluation))
    recipe = given(model=model, revision=revision, data=data)
    run_single(
        recipe, "convert", settings, out, device=device, allow_pickle=allow_pickle,
        print_recipe=print_recipe, json=json, quiet=quiet,
    )  # fmt: skip
