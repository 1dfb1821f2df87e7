"""Time and error of our GGUF encoders over those of libggml, one thread each.

    python benchmarks/gguf_encode.py [--types Q4_K,Q6_K] [--rows 64] [--cols 4096] [--results FILE]

A weight of heavy-tailed rows (Student's t, 5 degrees of freedom) and an importance matrix; every
run times libggml, `reference` and `best` in turn, so that what else the machine does falls on all
of them; ratios are of one run, and their median is reported. The error is the squared error
weighted with the importance, of `best` over libggml. Needs llama-cpp-python.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from llmopt.grids.ggml import decode, encode
from llmopt.specs.ggml import GGML_TYPES
from tests import ggml_reference

#: seconds after which no further run of a type begins
PATIENCE = 10.0


@dataclass(frozen=True)
class Row:
    """nanoseconds: libggml's, per weight. runs: how many. The others are ratios to libggml."""

    type: str
    nanoseconds: float
    reference: float
    best: float
    same_bytes: bool
    error: float
    runs: int


def draw(rows: int, cols: int) -> tuple[Tensor, Tensor]:
    source = torch.Generator().manual_seed(0)
    normal = torch.randn(6, rows, cols, generator=source)
    weight = 0.02 * normal[0] / normal[1:].square().mean(0).sqrt()
    return weight, torch.rand(cols, generator=source) ** 3 + 0.01


def seconds(call: Callable[[], Any]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def measure(library: Any, type_id: str, w: Tensor, importance: Tensor, runs: int) -> Row:
    arrays = w.numpy(), importance.numpy()
    calls: tuple[Callable[[], Any], ...] = (
        lambda: ggml_reference.quantize(library, type_id, *arrays),
        lambda: encode(type_id, w, importance, "reference"),
        lambda: encode(type_id, w, importance, "best"),
    )
    theirs, ours, best = (torch.as_tensor(call()) for call in calls)  # warms up, too
    times: list[list[float]] = []
    while len(times) < runs and sum(map(sum, times)) < PATIENCE:
        times.append([seconds(call) for call in calls])
    errors = [
        float((importance * (decode(type_id, data) - w).square()).double().sum())
        for data in (theirs, best)
    ]
    return Row(
        type=type_id,
        nanoseconds=round(1e9 * statistics.median(t[0] for t in times) / w.numel(), 1),
        reference=round(statistics.median(t[1] / t[0] for t in times), 2),
        best=round(statistics.median(t[2] / t[0] for t in times), 2),
        same_bytes=torch.equal(theirs, ours),
        error=round(errors[1] / errors[0], 4),
        runs=len(times),
    )


def main() -> None:
    types = [type_id for type_id, spec in GGML_TYPES.items() if spec.module]
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--types", default=",".join(types))
    parser.add_argument("--rows", type=int, default=64)
    parser.add_argument("--cols", type=int, default=4096)
    parser.add_argument("--runs", type=int, default=9, help="at most")
    parser.add_argument("--results", type=Path, help="write a JSON file")
    args = parser.parse_args()
    torch.set_num_threads(1)
    library, (w, importance) = ggml_reference.load(), draw(args.rows, args.cols)
    rows = []
    print(f"{'type':>8} {'ns':>7} {'reference':>9} {'best':>7} {'same':>5} {'error':>7}")
    for type_id in args.types.split(","):
        row = measure(library, type_id, w, importance, args.runs)
        print(
            f"{row.type:>8} {row.nanoseconds:7.1f} {row.reference:9.2f} {row.best:7.2f} "
            f"{row.same_bytes!s:>5} {row.error:7.4f}",
            flush=True,
        )
        rows.append(asdict(row))
    if args.results:
        report = {"rows": args.rows, "cols": args.cols, "types": rows}
        args.results.write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
