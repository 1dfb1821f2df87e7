"""Peak memory of error feedback (gptq) as a model gets deeper, to GPTQ's format or to GGUF.

    python benchmarks/memory/peak_memory.py [--blocks 4 8 16] [--to gguf:Q4_K_M] [--shapes SHAPE...]

Random models of like blocks, llamas of width 1024 unless told otherwise, are written to a temporary
folder and quantized, each in a process of its own, with the same calibration tokens.
benchmarks/process.py says what the two counters mean; RssAnon is the one that the promise is about
(memory of one block, whatever the model's size), VmHWM is given beside it. Growth is over the
smallest model of a shape.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from process import Measured, measure

from scripts.random_checkpoint import config_of, with_blocks, write_model


def quantize(model: Path, out: Path, arguments: argparse.Namespace) -> Measured:
    if arguments.to == "gptq":
        how = ["quantize", model, "--grid", "int4", "--group-size", "128", "--format", "gptq"]
    else:
        how = ["convert", model, "--to", arguments.to]
    command = [
        sys.executable, "-m", "llmopt", *how, "-o", out, "--method", "gptq",
        "--calibration", "demo", "--sequences", str(arguments.sequences),
        "--length", str(arguments.length), "--gate", "none", "--quiet",
    ]  # fmt: skip
    return measure(command, log=out.parent / "log")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--blocks", type=int, nargs="+", default=[4, 8, 16])
    parser.add_argument("--to", default="gptq", help="gptq, or gguf:PRESET")
    parser.add_argument("--sequences", type=int, default=16)
    parser.add_argument("--length", type=int, default=256)
    parser.add_argument("--results", type=Path, help="write the figures here, too (JSON)")
    parser.add_argument("--shapes", nargs="+", default=["llama-1024"], help="of random_checkpoint")
    arguments = parser.parse_args()
    rows: list[dict[str, Any]] = []
    print(
        "| shape | blocks | weights, MB | peak RssAnon, MB | growth | peak VmHWM, MB | growth | s |"
    )
    print("|---|---|---|---|---|---|---|---|")
    for shape in arguments.shapes:
        first: dict[str, Any] | None = None
        for blocks in arguments.blocks:
            with tempfile.TemporaryDirectory() as scratch:
                config = with_blocks(config_of(shape), blocks)
                size = write_model(Path(scratch) / "model", config, dtype=torch.bfloat16)
                measured = quantize(Path(scratch) / "model", Path(scratch) / "out", arguments)
            rows.append({"shape": shape, "blocks": blocks, "weight_bytes": size} | asdict(measured))
            first = first or rows[-1]
            print(_line(rows[-1], first), flush=True)
    if arguments.results:
        arguments.results.write_text(json.dumps(rows, indent=2) + "\n", encoding="utf-8")


def _line(row: dict[str, Any], first: dict[str, Any]) -> str:
    def memory(key: str) -> str:
        return f"{row[key] / 1e6:.0f} | {100 * (row[key] / first[key] - 1):+.1f}%"

    return (
        f"| {row['shape']} | {row['blocks']} | {row['weight_bytes'] / 1e6:.0f} "
        f"| {memory('peak_anonymous')} | {memory('peak_resident')} | {row['seconds']:.1f} |"
    )


if __name__ == "__main__":
    main()
