"""CPU time of an importance matrix, over that of a plain forward of the same tokens.

    python benchmarks/imatrix_cost.py [--sequences 32] [--length 512] [--results FOLDER/NAME]

Both are processes of their own on a random llama of width 1024 (scripts/random_checkpoint.py):
`llmopt convert --to imatrix`, and transformers' model that computes hidden states of the same
windows (benchmarks/forward.py). What a process takes on two windows of eight tokens is
its start: imports, and reading the weights. User plus system time, so that a busy machine changes
it little; the minimum of --runs, which take turns.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import forward
import tables
from process import measure

from scripts.random_checkpoint import config_of, with_blocks, write_model

START = (2, 8)
HEADER = "| process | whole, CPU s | its start | the rest |\n|---|---|---|---|"


def cpu_seconds(process: str, model: Path, sequences: int, length: int) -> float:
    if process == "forward":
        return forward.cpu_seconds(model, sequences, length)
    with tempfile.TemporaryDirectory(dir=model.parent) as folder:
        call = [
            "-m", "llmopt", "convert", model, "-o", Path(folder) / "imatrix", "--to", "imatrix",
            "--calibration", "demo", "--sequences", str(sequences), "--length", str(length),
            "--quiet",
        ]  # fmt: skip
        return measure([sys.executable, *call]).cpu_seconds


def measured(model: Path, arguments: argparse.Namespace) -> dict[str, dict[str, float]]:
    """Seconds of both processes: whole, start, rest."""
    sizes = {"start": START, "whole": (arguments.sequences, arguments.length)}
    found: dict[str, dict[str, list[float]]] = {
        process: {part: [] for part in sizes} for process in ("forward", "imatrix")
    }
    for _ in range(arguments.runs):
        for process, parts in found.items():
            for part, (sequences, length) in sizes.items():
                parts[part].append(cpu_seconds(process, model, sequences, length))
    least = {
        process: {part: min(each) for part, each in parts.items()}
        for process, parts in found.items()
    }
    return {name: each | {"rest": each["whole"] - each["start"]} for name, each in least.items()}


def save(arguments: argparse.Namespace, found: dict[str, dict[str, float]]) -> None:
    parts = ("whole", "start", "rest")
    table = [
        f"| {process} | {' | '.join(f'{seconds[part]:.1f}' for part in parts)} |"
        for process, seconds in found.items()
    ]
    ratio = {part: found["imatrix"][part] / found["forward"][part] for part in parts}
    table.append(f"| imatrix / forward | {' | '.join(f'{ratio[part]:.2f}' for part in parts)} |")
    asked: dict[str, Any] = {
        name: getattr(arguments, name) for name in ("blocks", "sequences", "length", "runs")
    }
    said = ", ".join(f"{name} {value}" for name, value in asked.items())
    said += f"; {os.cpu_count()} cores"
    print("\n".join([said, "", HEADER, *table]))
    if arguments.results:
        document = {"asked": asked, "seconds": found, "ratio": ratio}
        tables.save(arguments.results, document, said, [HEADER, *table])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--blocks", type=int, default=8)
    parser.add_argument("--sequences", type=int, default=32)
    parser.add_argument("--length", type=int, default=512)
    parser.add_argument("--runs", type=int, default=2)
    parser.add_argument("--results", type=Path, help="write NAME.json and NAME.md")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        model, config = (
            Path(folder) / "model",
            with_blocks(config_of("llama-1024"), arguments.blocks),
        )
        write_model(model, config, dtype=torch.bfloat16)
        save(arguments, measured(model, arguments))


if __name__ == "__main__":
    main()
