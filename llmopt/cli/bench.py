"""The commands of verbs that yield results: of many artifacts, against what they were made from."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from llmopt.cli import flags as f
from llmopt.cli.one_step import named, recipe_of
from llmopt.cli.verbs import REQUIRED, Call, checked, function, print_as_recipe
from llmopt.errors import Mistakes
from llmopt.recipe.source import CommandOption

if TYPE_CHECKING:
    from llmopt.cli.output import Output
    from llmopt.recipe import Recipe, Source
    from llmopt.specs import VerbSpec

_Artifacts = Annotated[
    list[str], typer.Argument(metavar="ARTIFACTS", help="Models or artifacts to measure.")
]
_Out = Annotated[Path | None, typer.Option("-o", "--out", help="Keep the results in this folder.")]
_Html = Annotated[Path | None, typer.Option(help="Write the report page to this file.")]


def command(verb: VerbSpec) -> Callable[..., None]:
    """`llmopt VERB ARTIFACTS... [flags]` for a verb that reads many as `model`, and one as `base`.

    The base is the artifacts' own source, unless a flag names another.
    """
    flags = [*f.verb_flags(verb.id), *f.recipe_flags((*f.EVALUATION, *f.COMMON))]
    own = {"artifacts": (_Artifacts, REQUIRED), "out": (_Out, None), "html": (_Html, None)}
    return function(verb, flags, own, _run)


def _run(call: Call) -> None:
    kept: Path | None = call.given["out"]
    folder = kept or Path(tempfile.mkdtemp(prefix="llmopt-bench-")) / call.verb.id
    mistakes, output = Mistakes(), call.output()
    try:
        data, names = _recipe(call, folder, mistakes, output)
        recipe, source = checked(data, names, mistakes)
        if call.given["print_recipe"]:
            print_as_recipe(data, output)
        else:
            _measure(recipe, source, folder, call, output)
    finally:
        if kept is None:
            shutil.rmtree(folder.parent)


def _recipe(
    call: Call, folder: Path, mistakes: Mistakes, output: Output
) -> tuple[dict[str, object], dict[str, CommandOption]]:
    """The recipe, whose model is the base, and the flags of its keys."""
    verb, artifacts = call.verb.id, call.given["artifacts"]
    base_flag = next(flag for flag in call.flags if flag.role == "base")
    base = call.typed.get(base_flag) or _source_of(artifacts[0])
    if base is None:
        output.note(f"no {base_flag.name}: only perplexity, size and speed are measured")
    root = str(base or artifacts[0])
    typed = {flag: text for flag, text in call.typed.items() if flag != base_flag}
    key = f.input_key(verb, "model") or "from"
    inputs = {
        key: ["model" if name == root else f.as_path(name) for name in artifacts],
        base_flag.key.rpartition(".")[2]: "model" if base else None,
    }
    data = recipe_of(verb, root, typed, folder, mistakes, inputs)
    which = CommandOption("ARTIFACTS")
    model = CommandOption(base_flag.name) if base_flag in call.typed else which
    return data, named(call.flags, call.typed) | {"model": model, f"{verb}.{key}": which}


def _measure(recipe: Recipe, source: Source, folder: Path, call: Call, output: Output) -> None:
    from llmopt.report import page

    html: Path | None = call.given["html"]
    if html is not None:
        hint = "--overwrite replaces it, or choose another --html"
        page.check(html, overwrite=call.options.overwrite, hint=hint, apart=[folder])
    output.note(f"{recipe.model}: checking the request ...")
    from llmopt import planner  # what takes long to import comes after the first line
    from llmopt.cli.reporting import bench_result, show_bench, write_report
    from llmopt.cli.steps import execute, raise_if_failed
    from llmopt.report.collect import manifests_of

    plan = planner.plan(recipe, source, folder)
    models = [plan.folder_of(name) for name in plan.steps[-1].parents]
    manifests_of(models)  # what the report could not read is said before the work
    ran = execute(plan, call.options, output)
    show_bench([*models, folder], output)
    if html is not None:
        write_report([*models, folder], html)
        output.text(f"report: {html}")
    output.result(bench_result(folder, models))
    raise_if_failed(ran)


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
