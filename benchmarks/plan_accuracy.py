"""What `plan` says of a step's memory, disk and time, against what it then takes; in six shapes.

    python benchmarks/plan_accuracy.py [--cases CASE ...] [--results FOLDER/plan_accuracy]

`llmopt doctor --measure` comes first, so that plans know this machine's speeds (--measured leaves
it out). Each case is a random model (scripts/random_checkpoint.py) and a command with its gate, in
a process of its own. Memory is unique memory as in benchmarks/process.py, disk is what the folder
of the result grew by at most. Steps that plan no disk are not compared there.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import steps
import tables
import torch

from scripts.random_checkpoint import SHAPES, with_blocks, write_model

HEADER = (
    "| case | step | memory, MB | ratio | disk, MB | ratio | time, s | ratio |\n"
    "|---|---|---|---|---|---|---|---|"
)
MEASURES = ("memory_bytes", "disk_bytes", "seconds")
#: how far a prediction may be from what is measured, as a share of that
LIMITS = {"memory_bytes": 0.15, "disk_bytes": 0.02, "seconds": 0.4}
_LLAMA = {
    "model_type": "llama", "hidden_size": 1024, "intermediate_size": 2816, "num_hidden_layers": 8,
    "num_attention_heads": 16, "num_key_value_heads": 8, "vocab_size": 32000,
    "max_position_embeddings": 2048, "tie_word_embeddings": False,
}  # fmt: skip
_QWEN3_MOE = _LLAMA | {
    "model_type": "qwen3_moe", "hidden_size": 512, "num_hidden_layers": 4, "head_dim": 64,
    "num_attention_heads": 8, "num_key_value_heads": 4, "num_experts": 16, "num_experts_per_tok": 4,
    "moe_intermediate_size": 384, "norm_topk_prob": True,
}  # fmt: skip
_GEMMA3 = {
    "model_type": "gemma3_text", "hidden_size": 1152, "intermediate_size": 6912,
    "num_hidden_layers": 4, "num_attention_heads": 4, "num_key_value_heads": 1, "head_dim": 256,
    "vocab_size": 65536, "max_position_embeddings": 2048, "sliding_window": 512,
    "layer_types": ["sliding_attention", "full_attention"] * 2, "tie_word_embeddings": True,
}  # fmt: skip
_GPT2 = {
    "model_type": "gpt2", "n_embd": 768, "n_layer": 12, "n_head": 12, "n_positions": 1024,
    "vocab_size": 50257,
}  # fmt: skip
_GPTQ = ("quantize", "--method", "gptq", "--grid", "int4")
_GGUF = ("convert", "--to", "gguf:Q4_K_M", "--method", "gptq")


@dataclass(frozen=True)
class Case:
    """A model, and what is done to it; `sequences` of 512 tokens."""

    config: Any
    command: tuple[str, ...]
    sequences: int


CASES = {
    "llama, width 1024": Case(_LLAMA, _GPTQ, 32),
    "llama-1b, 2 blocks": Case(with_blocks(SHAPES["llama-1b"], 2), _GGUF, 8),
    "llama-8b, 1 block": Case(with_blocks(SHAPES["llama-8b"], 1), _GPTQ, 8),
    "qwen3_moe, 16 experts": Case(_QWEN3_MOE, _GPTQ, 16),
    "gemma3, width 1152": Case(_GEMMA3, ("quantize", "--method", "awq", "--grid", "int4"), 16),
    "gpt2": Case(_GPT2, ("quantize", "--method", "rtn", "--grid", "int8", "--group-size", "-1"), 0),
}


def run(case: Case, scratch: Path, windows: int) -> dict[str, Any]:
    """What the case's command took, beside what was planned."""
    model, folder = scratch / "model", scratch / "result"
    write_model(model, case.config, dtype=torch.bfloat16)
    folder.mkdir()
    text = ["--calibration", "demo", "--sequences", str(case.sequences)] if case.sequences else []
    call = [
        *steps.LLMOPT, case.command[0], model, "-o", folder / "out", *case.command[1:], *text,
        "--windows", str(windows),
    ]  # fmt: skip
    return steps.run(call, folder)


def lines(name: str, row: dict[str, Any]) -> Iterator[str]:
    for step in row["steps"]:
        if took := step.get("measured"):
            cells = (_cells(step[key], took[key], key) for key in MEASURES)
            yield f"| {name} | {step['verb']} | {' | '.join(cells)} |"


def _cells(planned: float | None, took: float, key: str) -> str:
    """Both figures, and the planned one over the other; ! where that is too far off."""
    unit = 1.0 if key == "seconds" else 1e6
    if not planned:
        return f"{took / unit:.0f} | "
    ratio = planned / took if took else float("inf")
    mark = "" if abs(ratio - 1) <= LIMITS[key] else " !"
    return f"{planned / unit:.0f} / {took / unit:.0f} | {ratio:.2f}{mark}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--cases", nargs="+", choices=list(CASES), default=list(CASES))
    parser.add_argument("--windows", type=int, default=8, help="of 512 tokens, for the gates")
    parser.add_argument("--measured", action="store_true", help="the machine's speeds are known")
    parser.add_argument("--scratch", type=Path, help="where models go")
    parser.add_argument("--results", type=Path, help="write NAME.json and NAME.md")
    arguments = parser.parse_args()
    if not arguments.measured:
        subprocess.run([*steps.LLMOPT, "doctor", "--measure"], check=True)
    print(HEADER, flush=True)
    rows, table = {}, [HEADER]
    for name in arguments.cases:
        with tempfile.TemporaryDirectory(dir=arguments.scratch) as folder:
            rows[name] = run(CASES[name], Path(folder), arguments.windows)
        found = list(lines(name, rows[name]))
        print("\n".join(found), flush=True)
        table += found
    if arguments.results:
        said = f"planned / measured; windows {arguments.windows}; {os.cpu_count()} cores"
        tables.save(arguments.results, {"limits": LIMITS, "rows": rows}, said, table)


if __name__ == "__main__":
    main()
