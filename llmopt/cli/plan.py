"""llmopt plan"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from llmopt.cli import options as o

if TYPE_CHECKING:
    from rich.table import Table

    from llmopt.planner import Plan, PlannedStep


def plan(
    recipe: o.RecipeName,
    out: o.RunFolder = None,
    set_: o.Sets = None,
    max_memory: o.MaxMemory = None,
    tensors: Annotated[
        bool, typer.Option("--tensors", help="Show what happens to each tensor.")
    ] = False,
    json: o.Json = False,
    quiet: o.Quiet = False,
    verbose: o.Verbose = False,
) -> None:
    """Check a recipe and say what running it would do; reads headers, never weights."""
    from llmopt import planner
    from llmopt.cli.output import Output
    from llmopt.cli.run import default_folder
    from llmopt.recipe import load

    output = Output(json, quiet)
    loaded, source = load(recipe, o.overrides(set_, max_memory))
    made = planner.plan(loaded, source, out or default_folder(loaded.name), fetch=False)
    states: dict[str, str] = {name: state.what for name, state in planner.states(made).items()}
    output.show(_steps_table(made, states))
    if tensors:
        for step in made.steps:
            if step.changes:
                output.show(_changes_table(step))
    output.result([_document(step, states[step.id], made) for step in made.steps])


def _document(step: PlannedStep, state: str, made: Plan) -> dict[str, object]:
    from llmopt.model.ledger import document

    return {
        "step": step.id,
        "verb": step.verb,
        "state": state,
        "out": str(made.outputs[step.id]) if step.id in made.outputs else None,
        "parents": list(step.parents),
        "settings": step.document(),
        "notes": list(step.notes),
        "memory_bytes": step.footprint.memory_bytes,
        "disk_bytes": step.footprint.disk_bytes,
        "tensors": [document(change) for change in step.changes],
    }


def _steps_table(made: Plan, states: dict[str, str]) -> Table:
    from rich.table import Table

    from llmopt.model import ledger
    from llmopt.report.numbers import megabytes

    table = Table(
        "step", "does", "state", "tensors", title=f"{made.recipe.name}: {made.model.name}"
    )
    table.add_column("peak memory", justify="right")
    table.add_column("peak disk", justify="right")
    for step in made.steps:
        counts = ledger.in_words(ledger.count(change.actions for change in step.changes))
        if step.document().get("transform", "none") != "none":
            counts += " or folded"
        footprint = step.footprint
        sizes = [f"{megabytes(n)} MB" for n in (footprint.memory_bytes, footprint.disk_bytes)]
        table.add_row(step.id, _does(step), states[step.id], counts, *sizes)
    return table


def _does(step: PlannedStep) -> str:
    """What a step does, in a few words; with the length of text that the context cuts."""
    text = step.calibration or step.evaluation
    cut = ""
    if text is not None and text.cut_from is not None:
        cut = f" on {text.length} tokens a sequence (the context)"
    return "\n".join([step.summary + cut, *step.notes])


def _changes_table(step: PlannedStep) -> Table:
    from rich.table import Table

    table = Table("tensor", "shape", "becomes", "why", title=step.id)
    for change in step.changes:
        label = change.words if change.layout is None else f"{change.words}: {change.layout.label}"
        labels = sorted({option.label for option in change.options})
        if labels:
            label = " or ".join(labels) if len(labels) < 3 else f"one of {len(labels)} settings"
        table.add_row(change.name, "×".join(map(str, change.shape)), label, change.why)
    return table
