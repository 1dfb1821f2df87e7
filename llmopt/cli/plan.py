"""llmopt plan"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from llmopt.cli import options as o

if TYPE_CHECKING:
    from rich.table import Table

    from llmopt.planner import Plan, PlannedStep, State


def plan(
    recipe: o.RecipeName,
    out: o.RunFolder = None,
    set_: o.Sets = None,
    max_memory: o.MaxMemory = None,
    tensors: Annotated[
        bool, typer.Option("--tensors", help="Show what happens to each tensor.")
    ] = False,
    threads: o.Threads = None,
    json: o.Json = False,
    quiet: o.Quiet = False,
    verbose: o.Verbose = False,
) -> None:
    """Check a recipe and say what running it would do; reads headers, never weights."""
    from llmopt import forecast, planner
    from llmopt.cli.output import Output
    from llmopt.cli.run import default_folder
    from llmopt.recipe import load

    output = Output(json, quiet)
    loaded, source = load(recipe, o.overrides(set_, max_memory))
    made = planner.plan(loaded, source, out or default_folder(loaded.name), fetch=False)
    states = planner.states(made)
    speeds = forecast.speeds(forecast.here(threads))
    times = {} if speeds is None else forecast.of_steps(made, states, speeds)
    output.show(_steps_table(made, states, times))
    output.show(_in_all(states, times))
    if tensors:
        for step in made.steps:
            if step.changes:
                output.show(_changes_table(step))
    output.result(
        [_document(step, states[step.id], made, times.get(step.id)) for step in made.steps]
    )


def _document(
    step: PlannedStep, state: State, made: Plan, seconds: float | None
) -> dict[str, object]:
    from llmopt.model.ledger import document

    return {
        "step": step.id,
        "verb": step.verb,
        "state": state.what,
        "out": str(made.outputs[step.id]) if step.id in made.outputs else None,
        "parents": list(step.parents),
        "settings": step.document(),
        "notes": list(step.notes),
        "arrangement": vars(step.arrangement),
        "memory_bytes": step.footprint.memory_bytes,
        "disk_bytes": step.footprint.disk_bytes,
        "seconds": None if seconds is None else float(f"{seconds:.2g}"),
        "tensors": [document(change) for change in step.changes],
    }


def _steps_table(made: Plan, states: dict[str, State], times: dict[str, float]) -> Table:
    from rich.table import Table

    from llmopt.forecast import in_words
    from llmopt.model import ledger
    from llmopt.report.numbers import megabytes

    table = Table(
        "step", "does", "state", "tensors", title=f"{made.recipe.name}: {made.model.name}"
    )
    table.add_column("peak memory", justify="right")
    table.add_column("peak disk", justify="right")
    if times:
        table.add_column("time")
    for step in made.steps:
        counts = ledger.in_words(ledger.count(change.actions for change in step.changes))
        if step.document().get("transform", "none") != "none":
            counts += " or folded"
        footprint = step.footprint
        sizes = [f"{megabytes(n)} MB" for n in (footprint.memory_bytes, footprint.disk_bytes)]
        sizes += [in_words(times[step.id])] if times else []
        table.add_row(step.id, _does(step), states[step.id].what, counts, *sizes)
    return table


def _in_all(states: dict[str, State], times: dict[str, float]) -> str:
    """How long what is to run takes, or how to find out."""
    from llmopt.forecast import in_words

    if not times:
        return "time unknown: llmopt doctor --measure"
    left = [seconds for name, seconds in times.items() if states[name].what != "done"]
    return f"{in_words(sum(left))} in all" if left else "nothing to do"


def _does(step: PlannedStep) -> str:
    """What a step does, in a few words; how it keeps to its memory, and what the context cuts."""
    text = step.calibration or step.evaluation
    cut = ""
    if text is not None and text.cut_from is not None:
        cut = f" on {text.length} tokens a sequence (the context)"
    how = [step.arrangement.words] if step.arrangement.words else []
    return "\n".join([step.summary + cut, *how, *step.notes])


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
