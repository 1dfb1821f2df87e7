"""Quantize a model with GPTQModel, on CPU, from token windows made elsewhere.

Runs inside the `peer-gptqmodel` environment (requirements/peer-gptqmodel.txt):

    .venvs/peer-gptqmodel/bin/python benchmarks/peers/gptqmodel_quantize.py \\
        --model DIR --calibration windows.npy --out DIR --report report.json \\
        [--bits 4] [--group-size 128]

All else stays at GPTQModel's default: symmetric, damping 0.05 raised by 0.01 on failure,
group-aware order, true sequential, min-max scales, one sequence at a time. The artifact is what
its own `save` writes; the report holds the seconds of load, quantize and save, imports left out.
"""

from __future__ import annotations

import os

os.environ.setdefault("GPTQMODEL_CPU_WORKERS", "2")  # its own default fails on 2 cores

import torch
from common import Clock, parse, windows, write_report
from gptqmodel import GPTQModel, QuantizeConfig, __version__


def main() -> None:
    arguments = parse(__doc__)
    examples = [
        {"input_ids": row[None], "attention_mask": torch.ones_like(row)[None]}
        for row in windows(arguments)
    ]
    clock = Clock()
    config = QuantizeConfig(bits=arguments.bits, group_size=arguments.group_size)
    model = GPTQModel.load(str(arguments.model), config, device="cpu")
    clock.lap("load")
    model.quantize(examples)
    clock.lap("quantize")
    model.save(str(arguments.out))
    clock.lap("save")
    settings = {
        "symmetric": config.sym,
        "act_order": bool(config.desc_act),
        "act_group_aware": bool(config.act_group_aware),
        "damp_percent": config.damp_percent,
        "damp_auto_increment": config.damp_auto_increment,
    }
    write_report(arguments, clock, __version__, settings)


if __name__ == "__main__":
    main()
