"""One linear on the CPU: int8 weights and activations in integers, emulated, and dense.

    python benchmarks/int8_linear.py [--shapes 4096x4096,1024x4096] [--rows 1,8,64,512]

Milliseconds, the best of some runs, taken in turn. `int8` is what the torch runtime does with W8A8
artifacts, rounding of activations included; `emulated` what it does where the CPU has no exact,
fast kernel: the weight decoded once, activations rounded, a float32 product.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from llmopt.grids import integer
from llmopt.grids.base import GridOptions, QuantizedTensor
from llmopt.runtimes.torch.activations import round_tokens
from llmopt.runtimes.torch.int8 import Int8Linear, computes_in_integers

OPTIONS = GridOptions(grid="int8", bits=8, group_size=-1, signed_scales=False)


def contenders(rows: int, outputs: int, inputs: int) -> dict[str, Callable[[], Tensor]]:
    draw = torch.Generator().manual_seed(0)
    weight = torch.randn(outputs, inputs, generator=draw) * 0.02
    x = torch.randn(rows, inputs, generator=draw)
    params = integer.fit(weight, OPTIONS)
    codes = integer.encode(weight, params)
    layer = Int8Linear(
        QuantizedTensor(grid="int8", codes=codes, params=params, activations="int8"), None
    )
    half, decoded, narrow = weight.bfloat16(), integer.decode(codes, params), x.bfloat16()
    return {
        "float32": lambda: F.linear(x, weight),
        "bfloat16": lambda: F.linear(narrow, half),
        "emulated": lambda: F.linear(round_tokens(x, "int8"), decoded),
        "int8": lambda: layer(x),
    }


def timed(work: dict[str, Callable[[], Tensor]], runs: int) -> dict[str, float]:
    """Milliseconds of each, the best of the runs."""
    best = dict.fromkeys(work, float("inf"))
    for _ in range(runs):
        for name, call in work.items():
            start = time.perf_counter()
            call()
            best[name] = min(best[name], 1e3 * (time.perf_counter() - start))
    return best


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shapes", default="4096x4096,1024x4096", help="outputs x inputs")
    parser.add_argument("--rows", default="1,8,64,512")
    args = parser.parse_args()
    print(f"{torch.get_num_threads()} threads, computes in integers: {computes_in_integers()}")
    print(f"{'shape':>12} {'rows':>5} {'float32':>9} {'bfloat16':>9} {'emulated':>9} {'int8':>9}")
    for shape in args.shapes.split(","):
        outputs, inputs = map(int, shape.split("x"))
        for rows in map(int, args.rows.split(",")):
            found = timed(contenders(rows, outputs, inputs), 20 if rows < 100 else 5)
            figures = " ".join(f"{milliseconds:9.2f}" for milliseconds in found.values())
            print(f"{shape:>12} {rows:>5} {figures}", flush=True)


if __name__ == "__main__":
    main()
