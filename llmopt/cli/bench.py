"""llmopt bench"""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from llmopt.cli import options as o

if TYPE_CHECKING:
    from llmopt.cli.output import Output
    from llmopt.recipe import Recipe, Source
    from llmopt.step import RunOptions


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
    overwrite: o.Overwrite = False,
    print_recipe: o.PrintRecipe = False,
    json: o.Json = False,
    quiet: o.Quiet = False,
    verbose: o.Verbose = False,
) -> None:
    """Measure quality against a base, size, speed and memory."""
    typed = dict(locals())
    from llmopt.cli.flags import flags, recipe_of
    from llmopt.cli.output import Output
    from llmopt.recipe import from_data
    from llmopt.recipe.source import Option
    from llmopt.step import RunOptions

    base = against or _source_of(artifacts[0])
    if base is None:
        Output(json, quiet).note("no --against: only perplexity, size and speed are measured")
    root = base or artifacts[0]
    folder = out or Path(tempfile.mkdtemp(prefix="llmopt-bench-")) / "bench"
    named = ["model" if name == root else _as_path(name) for name in artifacts]
    data = recipe_of("bench", typed | {"against": root, "artifacts": named}, folder)
    data["steps"][0]["bench"]["against"] = "model" if base else None
    names = flags("bench", typed)
    if against is None:
        names["model"] = Option("ARTIFACTS")
    try:
        recipe, source = from_data(data, names)
        if print_recipe:
            from llmopt.cli.steps import print_as_recipe

            print_as_recipe(data, Output(json, quiet))
        else:
            options = RunOptions(device, threads, overwrite)
            _measure(recipe, source, folder, html, options, Output(json, quiet))
    finally:
        if out is None:
            shutil.rmtree(folder.parent)


def _measure(
    recipe: Recipe, source: Source, folder: Path, html: Path | None, options: RunOptions,
    output: Output,
) -> None:  # fmt: skip
    from llmopt.report import page

    if html is not None:
        hint = "--overwrite replaces it, or choose another --html"
        page.check(html, overwrite=options.overwrite, hint=hint, apart=[folder])
    output.note(f"{recipe.model}: checking the request ...")
    from llmopt import planner  # what takes long to import comes after the first line
    from llmopt.cli.reporting import bench_result, show_bench, write_report
    from llmopt.cli.steps import execute, raise_if_failed
    from llmopt.report.collect import manifests_of

    plan = planner.plan(recipe, source, folder)
    models = [plan.folder_of(name) for name in plan.steps[-1].parents]
    manifests_of(models)  # what the report could not read is said before the work
    ran = execute(plan, options, output)
    show_bench([*models, folder], output)
    if html is not None:
        write_report([*models, folder], html)
        output.text(f"report: {html}")
    output.result(bench_result(folder, models))
    raise_if_failed(ran)


def _as_path(name: str) -> str:
    """A folder or file here as no step is called, whatever its name."""
    here = name != "demo" and not Path(name).is_absolute() and Path(name).exists()
    return f"./{name}" if here else name


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
