"""Quantize a model with auto-round, on CPU, from token windows made elsewhere.

Runs inside the `peer-autoround` environment (requirements/peer-autoround.txt):

    .venvs/peer-autoround/bin/python benchmarks/peers/autoround_quantize.py \\
        --model DIR --calibration windows.npy --out DIR --report report.json \\
        [--bits 4] [--group-size 128]

auto-round's own defaults: symmetric, 200 iterations of sign descent per block, batch 8. The
artifact is in GPTQ's layout (`auto_gptq`); the report holds the seconds of load, and of quantize
and save together, imports left out.
"""

from __future__ import annotations

from auto_round import AutoRound, __version__
from common import Clock, parse, windows, write_report

ITERATIONS = 200


def main() -> None:
    arguments = parse(__doc__)
    tokens = windows(arguments)
    clock = Clock()
    rounding = AutoRound(
        str(arguments.model),
        scheme=f"W{arguments.bits}A16",
        group_size=arguments.group_size,
        dataset=list(tokens.split(8)),
        nsamples=tokens.shape[0],
        seqlen=tokens.shape[1],
        iters=ITERATIONS,
        device_map="cpu",
    )
    clock.lap("load")
    rounding.quantize_and_save(str(arguments.out), format="auto_gptq")
    clock.lap("quantize and save")
    write_report(arguments, clock, __version__, {"iterations": ITERATIONS, "symmetric": True})


if __name__ == "__main__":
    main()
