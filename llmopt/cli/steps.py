"""Subcommands as one-step recipes: the command line and YAML cannot drift apart."""

from __future__ import annotations

import json as jsonlib
import re
from pathlib import Path
from typing import Any

import yaml

from llmopt import pipeline, planner
from llmopt.artifact import RUN_RECORD
from llmopt.cli.output import Output, reporting
from llmopt.errors import GateFailed, RequestError
from llmopt.pipeline import StepResult
from llmopt.recipe import from_data
from llmopt.stages.base import RunOptions


def given(**settings: Any) -> dict[str, Any]:
    """The settings that were typed: those that are neither None nor an empty mapping."""
    return {name: value for name, value in settings.items() if value is not None and value != {}}


def grid_named(grid: str | None, bits: int | None) -> str | None:
    """The grid that --grid or --bits asks for."""
    if bits is not None and grid is not None:
        raise RequestError("--bits and --grid say the same thing: give one of them")
    return grid if bits is None else f"int{bits}"


def texts(
    calibration: str | None, evaluation: str | None, *, field: str | None, sequences: int | None,
    length: int | None,
) -> dict[str, Any]:  # fmt: skip
    """A recipe's `data` as options say it."""
    return given(
        calibration=given(source=calibration, field=field, sequences=sequences, length=length),
        evaluation=given(source=evaluation, field=field if evaluation else None),
    )


def single_recipe(
    recipe: dict[str, Any], verb: str, settings: dict[str, Any], out: Path
) -> dict[str, Any]:
    """The recipe that a subcommand stands for."""
    name = re.sub(r"[^A-Za-z0-9_.-]", "_", out.resolve().name).lstrip("._-") or verb
    return {"version": 1, "name": name, **recipe, "steps": [{"id": name, verb: settings}]}


def run_single(
    recipe: dict[str, Any], verb: str, settings: dict[str, Any], out: Path, *, device: str,
    allow_pickle: bool, print_recipe: bool, json: bool, quiet: bool,
) -> list[StepResult]:  # fmt: skip
    """Run one subcommand through the pipeline and print what came of it."""
    data = single_recipe(recipe, verb, settings, out)
    if print_recipe:
        print_as_recipe(data)
        return []
    output = Output(json, quiet)
    plan = planner.plan(*from_data(data), out, allow_pickle=allow_pickle)
    results = execute(plan, RunOptions(device), output)
    for result in results:
        if result.step.gates_of is None and result.step.verb in ("quantize", "convert"):
            output.text(summary_line(result))
    output.result([document(result) for result in results])
    raise_if_failed(results)
    return results


def print_as_recipe(data: dict[str, Any]) -> None:
    """The YAML that does what a command line asks for."""
    Output().text(yaml.safe_dump(data, sort_keys=False, allow_unicode=True))


def execute(plan: planner.Plan, options: RunOptions, output: Output) -> list[StepResult]:
    """Run a plan, showing its progress."""
    with reporting(output) as reporter:
        return pipeline.run(plan, options, reporter)


def raise_if_failed(results: list[StepResult]) -> None:
    """GateFailed, naming each gate, where any step's verdicts have one that did not pass."""
    failed = [
        f"{verdict['model']}: {verdict['gate']} (found {verdict['value']:.4g})"
        for result in results
        for verdict in result.verdicts
        if not verdict["passed"]
    ]
    if failed:
        raise GateFailed("quality gate failed: " + "; ".join(failed))


def document(result: StepResult) -> dict[str, Any]:
    """A step's result as JSON: its manifest and run record, and whether it was reused."""
    return {
        "step": result.step.id,
        "path": str(result.artifact.path),
        "reused": result.reused,
        "manifest": result.artifact.manifest,
        "run": run_record(result.artifact.path),
    }


def run_record(folder: Path) -> dict[str, Any]:
    """What differs from run to run, of the artifact in `folder`."""
    path = folder / RUN_RECORD
    record: dict[str, Any] = jsonlib.loads(path.read_text("utf-8")) if path.is_file() else {}
    return record


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
        line += f"{found['exact']} tensors exact"
        if found["rounded"]:
            line += f", {found['rounded']} rounded (by up to {found['largest_error']:.2%})"
    else:
        line += f"{len(quantized)} tensors quantized, {len(ledger) - len(quantized)} kept"
    cold = {entry["name"].rsplit(".", 2)[0] for entry in quantized if entry.get("cold")}
    if differences := manifest["evidence"].get("tokenizer"):
        line += f"; tokenizer: {'; '.join(differences)}"
    if left_out := manifest["evidence"].get("left_out"):
        line += f"; left out: {_some(left_out)}"
    if cold:
        line += f"; {len(cold)} cold experts (few tokens) on the statistics of their block's"
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
