"""Logits of a GPTQ or AWQ checkpoint as GPTQModel computes them, on CPU.

Runs inside the `peer-gptqmodel` environment (requirements/peer-gptqmodel.txt):

    GPTQMODEL_CPU_WORKERS=2 .venvs/peer-gptqmodel/bin/python \\
        scripts/foreign_loaders/gptqmodel_logits.py \\
        --model DIR --tokens tokens.npy --out logits.npy [--dtype float16]

The plain torch kernel is asked for by name, so that every bit width, order and checkpoint version
takes the same way: GPTQModel's automatic choice on CPU depends on the machine's instruction set.
"""

from __future__ import annotations

import json
import os

os.environ.setdefault("GPTQMODEL_CPU_WORKERS", "2")  # its own default fails on 2 cores
os.environ.setdefault("TORCHDYNAMO_DISABLE", "1")  # compiling its kernel costs more than a run

import torch
from common import Request, main
from gptqmodel import BACKEND, GPTQModel


def load(request: Request) -> torch.nn.Module:
    """The model with GPTQModel's reference torch kernel."""
    settings = json.loads((request.model / "config.json").read_text(encoding="utf-8"))
    awq = settings["quantization_config"]["quant_method"] == "awq"
    backend = BACKEND.AWQ_TORCH if awq else BACKEND.GPTQ_TORCH
    wrapper = GPTQModel.load(str(request.model), device="cpu", backend=backend, dtype=request.dtype)
    return wrapper.model


if __name__ == "__main__":
    main(load, __doc__)
