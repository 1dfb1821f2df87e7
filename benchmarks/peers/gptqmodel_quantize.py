"""Quantize a model with GPTQModel, on CPU, from token windows made elsewhere.

Runs inside the `peer-gptqmodel` environment (requirements/peer-gptqmodel.txt):

    GPTQMODEL_CPU_WORKERS=2 .venvs/peer-gptqmodel/bin/python \\
        benchmarks/peers/gptqmodel_quantize.py --model DIR --calibration windows.npy --out DIR \\
        --report report.json [--bits 4] [--group-size 128] [--act-order] [--format gptq_v2]

All that is not an argument stays at GPTQModel's default: symmetric, damping 0.05 raised by 0.01 on
failure, group-aware order where --act-order is not given, true sequential, min-max scales. The
artifact is what GPTQModel's own `save` writes. The report holds the seconds that load, quantize and
save took, without the imports.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from pathlib import Path

os.environ.setdefault("GPTQMODEL_CPU_WORKERS", "2")

import numpy as np
import torch
from gptqmodel import GPTQModel, QuantizeConfig, __version__


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--calibration", type=Path, required=True, help=".npy, int64 [n, length]")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--report", type=Path, required=True)
    parser.add_argument("--bits", type=int, default=4)
    parser.add_argument("--group-size", type=int, default=128)
    parser.add_argument("--act-order", action="store_true")
    parser.add_argument("--asymmetric", action="store_true")
    parser.add_argument("--format", choices=("gptq", "gptq_v2"), default="gptq")
    parser.add_argument("--batch-size", type=int, default=1)
    return parser.parse_args()


def settings(arguments: argparse.Namespace) -> QuantizeConfig:
    chosen = {
        "bits": arguments.bits,
        "group_size": arguments.group_size,
        "sym": not arguments.asymmetric,
        "format": arguments.format,
    }
    if arguments.act_order:
        chosen["desc_act"] = True
    return QuantizeConfig(**chosen)


def main() -> None:
    arguments = parse()
    windows = torch.from_numpy(np.load(arguments.calibration)).long()
    examples = [
        {"input_ids": row[None], "attention_mask": torch.ones_like(row)[None]} for row in windows
    ]
    started = time.perf_counter()
    config = settings(arguments)
    model = GPTQModel.load(str(arguments.model), config, device="cpu")
    loaded = time.perf_counter()
    model.quantize(examples, batch_size=arguments.batch_size)
    quantized = time.perf_counter()
    model.save(str(arguments.out))
    saved = time.perf_counter()
    report = {
        "tool": "gptqmodel",
        "version": __version__,
        "torch": torch.__version__,
        "settings": {
            "bits": arguments.bits,
            "group_size": arguments.group_size,
            "symmetric": not arguments.asymmetric,
            "act_order": bool(config.desc_act),
            "act_group_aware": bool(config.act_group_aware),
            "damp_percent": config.damp_percent,
            "damp_auto_increment": config.damp_auto_increment,
            "batch_size": arguments.batch_size,
        },
        "calibration_windows": list(windows.shape),
        "seconds": {
            "load": loaded - started,
            "quantize": quantized - loaded,
            "save": saved - quantized,
        },
    }
    arguments.report.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
