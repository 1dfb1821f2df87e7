"""Subcommands as one-step recipes: the command line and YAML cannot drift apart."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from llmopt import pipeline, planner
from llmopt.artifact import RUN_RECORD, read_object
from llmopt.cli.output import Output, found, reporting
from llmopt.errors import GateFailed, Mistakes, RecipeError
from llmopt.pipeline import Ran, StepResult
from llmopt.recipe import from_data
from llmopt.recipe.source import Flag
from llmopt.report import card
from llmopt.specs import GRIDS
from llmopt.specs.base import counted
from llmopt.stages.base import RunOptions


def grid_named(grid: str | None, bits: int | None) -> str | None:
    """The grid that --grid or --bits asks for."""
    known = [spec.bits for spec in GRIDS.values() if spec.id == f"int{spec.bits}"]
    if bits is not None and grid is not None:
        raise RecipeError("says the same thing as --grid: give one of them", where="--bits")
    if bits is not None and bits not in known:
        choices = f"{', '.join(map(str, known[:-1]))} or {known[-1]}"
        raise RecipeError(f"{bits} is not {choices}", where="--bits")
    return grid if bits is None else f"int{bits}"


def gates_typed(gate: list[str] | None) -> list[str] | None:
    """Gates as recipes say them: `none` is for no gate."""
    return [] if gate == ["none"] else gate


def run_single(
    data: dict[str, Any], flags: Mapping[str, Flag], mistakes: Mistakes, out: Path,
    options: RunOptions, *, allow_pickle: bool, print_recipe: bool, json: bool, quiet: bool,
) -> None:  # fmt: skip
    """Run the one step of a command's recipe and print what came of it.

    `mistakes` are those that the command found itself.
    """
    with mistakes.gathered():
        recipe, source = from_data(data, flags)
    mistakes.raise_any()
    output = Output(json, quiet)
    if print_recipe:
        print_as_recipe(data, output)
        return
    plan = planner.plan(recipe, source, out, allow_pickle=allow_pickle)
    ran = execute(plan, options, output)
    for result in ran.results:
        if result.step.gates_of is None and result.step.verb in ("quantize", "convert"):
            output.text(summary_line(result))
    output.result(documents(ran))
    raise_if_failed(ran)


def print_as_recipe(data: dict[str, Any], output: Output) -> None:
    """The recipe that does what a command line asks for."""
    output.text(yaml.safe_dump(data, sort_keys=False, allow_unicode=True))
    output.result(data)


def execute(plan: planner.Plan, options: RunOptions, output: Output) -> Ran:
    """Run a plan, showing its progress."""
    with reporting(output) as reporter:
        return pipeline.run(plan, options, reporter)


def raise_if_failed(ran: Ran) -> None:
    """GateFailed, naming each gate that did not pass and each step that was refused for it."""
    failed = [
        f"{verdict['model']}: {verdict['gate']} (found {found(verdict)})"
        for result in ran.results
        for verdict in result.verdicts
        if not verdict["passed"]
    ]
    reasons = ["quality gate failed: " + "; ".join(failed)] if failed else []
    reasons += [f"{name} was not run: {why}" for name, why in ran.refused.items()]
    if reasons:
        raise GateFailed(". ".join(reasons))


def documents(ran: Ran) -> list[dict[str, Any]]:
    """What came of each step as JSON; those that were refused are last."""
    refused = [{"step": name, "refused": why} for name, why in ran.refused.items()]
    return [*(document(result) for result in ran.results), *refused]


def document(result: StepResult) -> dict[str, Any]:
    """A step's result as JSON: its manifest and run record, and whether it was reused."""
    return {
        "step": result.step.id,
        "path": str(result.artifact.path),
        "reused": result.reused,
        "notes": list(result.notes),
        "manifest": result.artifact.manifest,
        "run": run_record(result.artifact.path),
    }


def run_record(folder: Path) -> dict[str, Any]:
    """What differs from run to run, of the artifact in `folder`."""
    path = folder / RUN_RECORD
    return read_object(path) if path.is_file() else {}


def summary_line(result: StepResult) -> str:
    """One line on what was written, what was left alone, and how good it is."""
    manifest = result.artifact.manifest
    ledger = manifest["ledger"]
    quantized = [entry for entry in ledger if entry["action"] == "quantized"]
    size = sum(file["bytes"] for file in manifest["files"]) / 1e6
    line = f"{result.artifact.path}: {manifest['format']}, {size:.2f} MB, "
    if not ledger:
        return line.removesuffix(", ")
    if found := manifest["evidence"].get("certificate"):
        line += f"{counted(found['exact'], 'tensor')} exact"
        if found["rounded"]:
            line += f", {found['rounded']} rounded (by up to {found['largest_error']:.2%})"
    else:
        line += (
            f"{counted(len(quantized), 'tensor')} quantized, {len(ledger) - len(quantized)} kept"
        )
    cold = {entry["name"].rsplit(".", 2)[0] for entry in quantized if entry.get("cold")}
    if differences := manifest["evidence"].get("tokenizer"):
        line += f"; tokenizer: {'; '.join(differences)}"
    loading = manifest["evidence"].get("loading", {})
    if loading.get("apart"):
        line += f"; vLLM and SGLang cannot load it: {card.apart(loading)}"
    if left_out := manifest["evidence"].get("left_out"):
        line += f"; left out: {_some(left_out)}"
    if cold:
        line += (
            f"; {counted(len(cold), 'cold expert')} (few tokens) on the statistics of their block's"
        )
    evidence = manifest.get("gate", {}).get("evidence", {})
    if "kl" in evidence:
        line += f"; KL {evidence['kl']['mean']['value']:.4g} to the original"
    if allocation := manifest["evidence"].get("allocation"):
        line += (
            f" ({allocation['predicted_kl']:.4g} predicted), "
            f"{allocation['bits_per_weight']:.3f} bits per quantized weight"
        )
    return line


def _some(left_out: dict[str, str], most: int = 3) -> str:
    """The first few files of those that stay behind, each with its reason."""
    named = [f"{name} ({why})" for name, why in left_out.items()]
    more = [f"and {len(named) - most} more"] if len(named) > most else []
    return ", ".join([*named[:most], *more])
