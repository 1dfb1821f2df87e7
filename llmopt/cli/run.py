"""llmopt run"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from llmopt.cli import options as o

if TYPE_CHECKING:
    from llmopt.cli.output import Output
    from llmopt.pipeline import Ran


def run(
    recipe: o.RecipeName,
    out: o.RunFolder = None,
    set_: o.Sets = None,
    max_memory: o.MaxMemory = None,
    device: o.Device = "auto",
    threads: o.Threads = None,
    allow_pickle: o.AllowPickle = False,
    json: o.Json = False,
    quiet: o.Quiet = False,
    verbose: o.Verbose = False,
) -> None:
    """Run a recipe: what is there already is reused, what was begun is resumed."""
    from llmopt.cli.output import Output
    from llmopt.recipe import load

    output = Output(json, quiet)
    loaded, source = load(recipe, o.overrides(set_, max_memory))
    folder = out or default_folder(loaded.name)
    output.note(f"{loaded.name}: checking the recipe ...")
    from llmopt import planner  # what takes long to import comes after the first line
    from llmopt.cli.steps import documents, execute, raise_if_failed
    from llmopt.report import page
    from llmopt.specs import VERBS
    from llmopt.specs.base import counted
    from llmopt.step import RunOptions

    plan = planner.plan(loaded, source, folder, allow_pickle=allow_pickle)
    if any(VERBS[step.verb].yields == "results" and step.judges is None for step in plan.steps):
        page.check(folder / "report.html", hint="move it away, or choose another -o")
    ran = execute(plan, RunOptions(device, threads), output)
    report = _show(ran, folder, output)
    done, reused = (sum(r.reused == how for r in ran.results) for how in (False, True))
    refused = f", {len(ran.refused)} refused" if ran.refused else ""
    output.note(f"{done} of {counted(len(plan.steps), 'step')} run, {reused} reused{refused}")
    output.result({"steps": documents(ran), "report": report and str(report)})
    raise_if_failed(ran)


def _show(ran: Ran, folder: Path, output: Output) -> Path | None:
    """Say what came of the steps that were written; the report page, where any measured."""
    from llmopt.cli.reporting import show_bench, write_report
    from llmopt.cli.steps import summary_line, written

    made, measured = written(ran, "model"), written(ran, "results")
    for result in ran.results:
        if result in measured:
            show_bench([*(each.artifact.path for each in made), result.artifact.path], output)
        elif result in made:
            output.text(summary_line(result))
    for name, why in ran.refused.items():
        output.text(f"{name}: refused: {why}")
    if not measured:
        return None
    folders = [each.artifact.path for each in ran.results if each in made or each in measured]
    report = write_report(folders, folder / "report.html")
    output.text(f"report: {report}")
    return report


def default_folder(name: str) -> Path:
    """Where a recipe's results go unless -o says otherwise."""
    return Path("llmopt-runs") / name
