"""llmopt bench"""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from llmopt.cli import options as o

if TYPE_CHECKING:
    from llmopt.stages.base import RunOptions


def bench(
    artifacts: Annotated[list[str], typer.Argument(help="Models or artifacts to measure.")],
    against: Annotated[
        str | None,
        typer.Option(help="The base of KL and agreement. [default: the artifact's own source]"),
    ] = None,
    gate: Annotated[
        list[str] | None,
        typer.Option(help='Fail with exit 3 unless this holds: "kl.mean < 0.05".'),
    ] = None,
    evaluation: o.Evaluation = None,
    field: o.Field = None,
    windows: o.Windows = None,
    length: o.Length = None,
    speed: Annotated[bool, typer.Option(help="Measure speed and memory too.")] = True,
    out: Annotated[
        Path | None, typer.Option("-o", "--out", help="Keep the results in this folder.")
    ] = None,
    html: Annotated[Path | None, typer.Option(help="Write the report page to this file.")] = None,
    seed: o.Seed = None,
    runtime: o.Runtime = "auto",
    device: o.Device = "auto",
    threads: o.Threads = None,
    print_recipe: o.PrintRecipe = False,
    json: o.Json = False,
    quiet: o.Quiet = False,
    verbose: o.Verbose = False,
) -> None:
    """Measure quality against a base, size, speed and memory."""
    from llmopt.cli.output import Output
    from llmopt.cli.steps import given
    from llmopt.stages.base import RunOptions

    base = against or _source_of(artifacts[0])
    if base is None:
        Output(json, quiet).note("no --against: only perplexity, size and speed are measured")
    root = base or artifacts[0]
    settings: dict[str, Any] = given(gates=gate, speed=speed, runtime=runtime) | {
        "from": ["model" if name == root else name for name in artifacts],
        "against": "model" if base else None,
    }
    data = given(evaluation=given(source=evaluation, field=field, windows=windows, length=length))
    recipe = given(model=root, seed=seed, data=data)
    options = RunOptions(device, threads)
    folder = out or Path(tempfile.mkdtemp(prefix="llmopt-bench-")) / "bench"
    try:
        _measure(recipe, settings, folder, html, options, print_recipe, json, quiet)
    finally:
        if out is None:
            shutil.rmtree(folder.parent)


def _measure(
    recipe: dict[str, Any], settings: dict[str, Any], folder: Path, html: Path | None,
    options: RunOptions, print_recipe: bool, json: bool, quiet: bool,
) -> None:  # fmt: skip
    from llmopt import planner
    from llmopt.cli.output import Output
    from llmopt.cli.reporting import bench_document, show_bench, write_report
    from llmopt.cli.steps import execute, print_as_recipe, raise_if_failed, single_recipe
    from llmopt.recipe import from_data

    data = single_recipe(recipe, "bench", settings, folder)
    if print_recipe:
        print_as_recipe(data)
        return
    output = Output(json, quiet)
    plan = planner.plan(*from_data(data), folder)
    results = execute(plan, options, output)
    folders = [*plan.externals.values(), folder]
    show_bench(folders, output)
    if html is not None:
        write_report(folders, html)
        output.text(f"report: {html}")
    output.result(bench_document(folder))
    raise_if_failed(results)


def _source_of(name: str) -> str | None:
    """The model that an artifact was made from, where its name alone finds it again."""
    from llmopt.artifact import folder_of, read_manifest

    folder = folder_of(Path(name))
    if not folder.is_dir():
        return None
    for parent in read_manifest(folder).get("parents", ()):
        source = parent.get("source")
        if source == "demo" or (source and "/" in source):
            return str(source)
    return None
