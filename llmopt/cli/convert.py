"""llmopt convert"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from llmopt.cli import options as o
from llmopt.errors import RecipeError
from llmopt.specs import GRIDS


def convert(
    model: o.Model,
    out: Annotated[Path, typer.Option("-o", "--out", help="Folder to write, or a .gguf file.")],
    to: Annotated[
        str,
        typer.Option(
            help=f"{', '.join(o.WRITTEN)}; gguf or gguf:Q4_K_M and other presets; imatrix; hf for "
            "plain tensors."
        ),
    ],
    exact: Annotated[
        bool, typer.Option("--exact", help="Refuse, before work starts, whatever is not exact.")
    ] = False,
    grid: Annotated[
        str | None, typer.Option(help=f"Where it is rounded: {o.one_of(GRIDS, 'as the source')}")
    ] = None,
    bits: o.Bits = None,
    group_size: Annotated[
        int | None,
        typer.Option(help="Input channels that share a scale. [default: the source's]"),
    ] = None,
    asymmetric: o.Asymmetric = False,
    dtype: Annotated[
        str | None,
        typer.Option(
            help="Of decoded weights: float32, which holds them all, float16 or bfloat16. "
            "[default: auto, the model's]"
        ),
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
    name: Annotated[
        str | None, typer.Option(help="gguf: the model's name. [default: the source's]")
    ] = None,
    metadata: Annotated[
        list[str] | None,
        typer.Option(metavar="KEY=VALUE", help="gguf: e.g. general.author=Me; repeatable."),
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
    threads: o.Threads = None,
    allow_pickle: o.AllowPickle = False,
    overwrite: o.Overwrite = False,
    print_recipe: o.PrintRecipe = False,
    json: o.Json = False,
    quiet: o.Quiet = False,
    verbose: o.Verbose = False,
) -> None:
    """Write the same weights in another layout; what that cannot hold is rounded and reported."""
    typed = dict(locals())
    from llmopt.cli.flags import flags, recipe_of
    from llmopt.cli.steps import gates_typed, grid_named, run_single
    from llmopt.errors import Mistakes
    from llmopt.step import RunOptions

    mistakes = Mistakes()
    values = typed | {
        "bits": None,
        "asymmetric": False if asymmetric else None,
        "exact": exact or None,
        "imatrix": None if imatrix is None else str(imatrix),
        "gate": gates_typed(gate),
        "type_": None,
        "metadata": None,
    }
    with mistakes.gathered():
        values["grid"] = grid_named(grid, bits)
    with mistakes.gathered():
        values["type_"] = _overrides(type_)
    with mistakes.gathered():
        values["metadata"] = _metadata(metadata)
    if imatrix is not None and calibration is not None:
        message = "takes the place of calibration text"
        mistakes.add([RecipeError(message, where="--imatrix", hint="leave out --calibration")])
    data = recipe_of("convert", values, out)
    if evaluation is not None and field is not None:
        data["data"]["evaluation"]["field"] = field
    run_single(
        data, flags("convert", typed), mistakes, out, RunOptions(device, threads, overwrite),
        allow_pickle=allow_pickle, print_recipe=print_recipe, json=json, quiet=quiet,
    )  # fmt: skip


def _overrides(typed: list[str] | None) -> list[dict[str, Any]] | None:
    """--type PATTERN=TYPE as a recipe says it."""
    pairs = [text.rpartition("=") for text in typed or ()]
    for pattern, equals, type_id in pairs:
        if not pattern or not equals:
            raise RecipeError(
                f"{pattern}{equals}{type_id} is not PATTERN=TYPE",
                where="--type",
                hint=f'--type "*.attn_v.*={type_id or "Q6_K"}"',
            )
    return [{"match": pattern, "type": type_id} for pattern, _, type_id in pairs] or None


def _metadata(typed: list[str] | None) -> dict[str, Any] | None:
    """--metadata KEY=VALUE as a recipe says it."""
    from llmopt.specs.gguf_metadata import parsed

    found: dict[str, Any] = {}
    for text in typed or ():
        key, equals, value = text.partition("=")
        if not key or not equals:
            raise RecipeError(
                f"{text} is not KEY=VALUE",
                where="--metadata",
                hint=f"--metadata {key or 'general.author'}=VALUE",
            )
        if key in found:
            raise RecipeError(f"{key} is given twice", where="--metadata")
        found[key] = parsed(key, value)
    return found or None
