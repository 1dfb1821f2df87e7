"""Memory and time of evaluation block by block.

    python benchmarks/lockstep.py [--max-memory 800MB] [--results FOLDER/lockstep]

Random llamas of width 1024 (scripts/random_checkpoint.py), and the same with int8, int4 and int3
weights. Memory: `llmopt bench` of one of them beside the original under --max-memory, at each
number of --blocks; unique memory as in benchmarks/process.py. Time: CPU seconds of `llmopt bench`
of all three beside the original, over those of as many plain forwards with logits by transformers
of the same windows (benchmarks/forward.py; the original four times, since only it is a checkpoint
of plain weights). What either takes on two windows of eight tokens is its start: imports, and
reading or decoding weights.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import forward
import tables
from process import Measured, Watch, measure
from steps import LLMOPT

from scripts.random_checkpoint import write_model

# head and embeddings are small, so that what grows is what is measured
CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 1024,
    "intermediate_size": 2816,
    "num_attention_heads": 16,
    "num_key_value_heads": 8,
    "head_dim": 64,
    "max_position_embeddings": 2048,
    "vocab_size": 4096,
    "tie_word_embeddings": False,
}
GRIDS = ("int8", "int4", "int3")
START = (2, 8)


def make(folder: Path, blocks: int, grids: Sequence[str]) -> tuple[Path, list[Path]]:
    """A model, and candidates."""
    model = folder / "model"
    write_model(model, CONFIG | {"num_hidden_layers": blocks}, dtype=torch.bfloat16)
    for grid in grids:
        how = ("quantize", model, "-o", folder / grid, "--method", "rtn", "--grid", grid)
        measure([*LLMOPT, *how, "--gate", "none", "--quiet"], log=folder / f"{grid}.log")
    return model, [folder / grid for grid in grids]


def bench(
    model: Path, candidates: Sequence[Path], sizes: tuple[int, int], limit: str
) -> tuple[Measured, int]:
    """What it took, and the peak of unique memory."""
    watch = Watch()
    call = [
        *LLMOPT, "bench", *candidates, "--against", model, "--max-memory", limit,
        "--windows", str(sizes[0]), "--length", str(sizes[1]), "--no-speed",
    ]  # fmt: skip
    measured = measure(call, log=model.parent / "bench.log", watch=watch)
    return measured, watch.peak()


def memory(arguments: argparse.Namespace) -> dict[int, int]:
    """Bytes, by the number of blocks."""
    found = {}
    for blocks in arguments.blocks:
        with tempfile.TemporaryDirectory() as folder:
            model, candidates = make(Path(folder), blocks, GRIDS[1:2])
            sizes = (arguments.windows, arguments.length)
            found[blocks] = bench(model, candidates, sizes, arguments.max_memory)[1]
    return found


def seconds(arguments: argparse.Namespace) -> dict[str, float]:
    """CPU seconds, less their starts: of a forward, and of the bench of all candidates."""
    sizes = (arguments.windows, arguments.length)
    found: dict[str, list[float]] = {"forward": [], "bench": []}
    with tempfile.TemporaryDirectory() as folder:
        model, candidates = make(Path(folder), arguments.blocks[0], GRIDS)
        for _ in range(arguments.runs):
            for process, taken in found.items():
                pair = []
                for each in (sizes, START):
                    if process == "forward":
                        pair.append(forward.cpu_seconds(model, "evaluation", *each, logits=True))
                    else:
                        took, _ = bench(model, candidates, each, arguments.max_memory)
                        pair.append(took.cpu_seconds)
                taken.append(pair[0] - pair[1])
    return {process: min(taken) for process, taken in found.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--blocks", type=int, nargs="+", default=[4, 16])
    parser.add_argument("--windows", type=int, default=32)
    parser.add_argument("--length", type=int, default=512)
    parser.add_argument("--max-memory", default="800MB", help="too little for whole models")
    parser.add_argument("--runs", type=int, default=2)
    parser.add_argument("--results", type=Path, help="write NAME.json and NAME.md")
    arguments = parser.parse_args()
    peaks, took = memory(arguments), seconds(arguments)
    first, forwards = peaks[arguments.blocks[0]], took["forward"] * (1 + len(GRIDS))
    table = ["| blocks | peak unique memory, MB | growth |", "|---|---|---|"]
    table += [
        f"| {blocks} | {peak / 1e6:.0f} | {100 * (peak / first - 1):+.1f}% |"
        for blocks, peak in peaks.items()
    ]
    ratio = took["bench"] / forwards
    table += ["", "| four forwards, CPU s | bench of three, CPU s | ratio |", "|---|---|---|"]
    table += [f"| {forwards:.1f} | {took['bench']:.1f} | {ratio:.2f} |"]
    names = ("blocks", "windows", "length", "max_memory", "runs")
    asked: dict[str, Any] = {name: getattr(arguments, name) for name in names}
    said = ", ".join(f"{name} {value}" for name, value in asked.items())
    said += f"; {os.cpu_count()} cores"
    print("\n".join([said, "", *table]))
    if arguments.results:
        document = {"asked": asked, "peaks": peaks, "seconds": took, "ratio": ratio}
        tables.save(arguments.results, document, said, table)


if __name__ == "__main__":
    main()
