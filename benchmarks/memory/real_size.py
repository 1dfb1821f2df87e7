"""Memory and time of models of real size, gate included, and what `plan` says of whole ones.

    python benchmarks/memory/real_size.py --scratch FOLDER [--results FOLDER/real_size]
    python benchmarks/memory/real_size.py --scratch FOLDER --shape CONFIG --blocks 1 \\
        --sequences 4 4 --length 64 --windows 2

A checkpoint of random weights with some blocks of a real model (scripts/random_checkpoint.py) is
quantized by two commands, each with its default gate in the same process: to int4 by error
feedback, and to GGUF's Q4_K_M with error feedback. benchmarks/process.py says what unique memory
is; a step's is the most that was seen from the line that announces it to the line that ends it.
`plan` is asked for the same recipe, of this model and of the whole ones, of which there are headers
alone.

A job that the results have already is not run again. A job that was killed goes on when the script
is called again with the same --scratch, and its row says so: its seconds are those of the rest.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import steps
import tables

from scripts.random_checkpoint import made

JOBS = {
    "gptq int4": ("quantize", "--method", "gptq", "--grid", "int4", "--group-size", "128"),
    "GGUF Q4_K_M, gptq": ("convert", "--to", "gguf:Q4_K_M", "--method", "gptq"),
}
GIB = 1 << 30
HEADER = (
    "| job | step | unique memory, GiB | planned, GiB | measured / planned | wall, s | CPU, s |\n"
    "|---|---|---|---|---|---|---|"
)
PLAN_HEADER = (
    "| whole model | blocks | job | step | planned memory, GiB | planned disk, GB |\n"
    "|---|---|---|---|---|---|"
)


def parse() -> argparse.Namespace:
    parser = steps.model_parser(__doc__, blocks=4)
    parser.add_argument("--jobs", nargs="+", choices=list(JOBS), default=list(JOBS))
    parser.add_argument("--sequences", type=int, nargs="+", default=[128, 32], help="for each job")
    parser.add_argument("--length", type=int, default=512)
    parser.add_argument("--windows", type=int, default=64, help="of 512 tokens, for the gates")
    parser.add_argument("--max-memory", help="given to the commands")
    parser.add_argument("--whole", nargs="*", default=["llama-8b", "llama-70b"])
    parser.add_argument("--results", type=Path, help="write NAME.json and NAME.md")
    arguments = parser.parse_args()
    if len(arguments.sequences) != len(JOBS):
        parser.error(f"--sequences takes {len(JOBS)} numbers: {', '.join(JOBS)}")
    return arguments


def asked(arguments: argparse.Namespace, job: str) -> dict[str, Any]:
    """What a row is the answer to."""
    return {
        "job": job,
        "model": arguments.model.name if arguments.model else arguments.shape,
        "blocks": None if arguments.model else arguments.blocks,
        "sequences": dict(zip(JOBS, arguments.sequences, strict=True))[job],
        "length": arguments.length,
        "windows": arguments.windows,
        "max_memory": arguments.max_memory,
    }


def command(question: dict[str, Any], model: Path, out: Path) -> list[str | Path]:
    limit = ["--max-memory", question["max_memory"]] if question["max_memory"] else []
    return [
        *steps.LLMOPT, JOBS[question["job"]][0], model, "-o", out,
        *JOBS[question["job"]][1:], "--calibration", "demo",
        "--sequences", str(question["sequences"]), "--length", str(question["length"]),
        "--windows", str(question["windows"]), *limit,
    ]  # fmt: skip


def run(question: dict[str, Any], model: Path, folder: Path) -> dict[str, Any]:
    """One job: what it took. Its output is removed."""
    resumed = folder.exists()
    folder.mkdir(exist_ok=True)
    found = steps.run(command(question, model, folder / "out"), folder)
    manifest = json.loads((folder / "out" / "llmopt.json").read_text())
    shutil.rmtree(folder)
    return {"asked": question, "resumed": resumed, **found, "gates": manifest["gates"]}


def lines(row: dict[str, Any]) -> Iterator[str]:
    name = row["asked"]["job"] + (" (resumed)" if row["resumed"] else "")
    for step in row["steps"]:
        if took := step.get("measured"):
            ratio = f"{took['memory_bytes'] / step['memory_bytes']:.2f}"
            yield (
                f"| {name} | {step['verb']} | {took['memory_bytes'] / GIB:.2f} "
                f"| {step['memory_bytes'] / GIB:.2f} | {ratio} "
                f"| {took['seconds']:.0f} | {took['cpu_seconds']:.0f} |"
            )
    yield (
        f"| {name} | the process | {row['peak_unique'] / GIB:.2f} | | "
        f"| {row['seconds']:.0f} | {row['cpu_seconds']:.0f} |"
    )


def plans(arguments: argparse.Namespace) -> Iterator[str]:
    """What `plan` says of whole models."""
    for shape in arguments.whole:
        name = Path(shape).stem
        model = made(arguments.scratch / f"whole-{name}", shape)
        blocks = json.loads((model / "config.json").read_text())["num_hidden_layers"]
        for job in arguments.jobs:
            call = command(asked(arguments, job), model, arguments.scratch / "whole")
            found = steps.planned(call, arguments.scratch)
            for step in found:
                yield (
                    f"| {name} | {blocks} | {job} | {step['verb']} "
                    f"| {step['memory_bytes'] / GIB:.2f} | {step['disk_bytes'] / 1e9:.1f} |"
                )
            if not found:
                yield f"| {name} | {blocks} | {job} | refused | | |"


def save(arguments: argparse.Namespace, rows: list[dict[str, Any]], whole: list[str]) -> None:
    """Print and keep what there is."""
    found = [HEADER, *(line for row in rows for line in lines(row)), "", PLAN_HEADER, *whole]
    print("\n".join(found), flush=True)
    if arguments.results:
        questions = "; ".join(json.dumps(row["asked"]) for row in rows)
        said = f"{os.cpu_count()} cores; {questions}"
        tables.save(arguments.results, {"rows": rows, "whole": whole}, said, found)


def main() -> None:
    arguments = parse()
    arguments.scratch.mkdir(parents=True, exist_ok=True)
    folder = arguments.scratch / f"{Path(arguments.shape).stem}-{arguments.blocks}"
    kept = arguments.results.with_suffix(".json") if arguments.results else None
    rows = json.loads(kept.read_text())["rows"] if kept and kept.exists() else []
    whole = list(plans(arguments))
    for job in arguments.jobs:
        question = asked(arguments, job)
        if not any(row["asked"] == question for row in rows):
            model = arguments.model or made(folder, arguments.shape, arguments.blocks)
            rows.append(run(question, model, arguments.scratch / job.replace(" ", "-")))
            save(arguments, rows, whole)
    save(arguments, rows, whole)


if __name__ == "__main__":
    main()
