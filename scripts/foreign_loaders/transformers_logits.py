"""Logits of a checkpoint as transformers computes them, on CPU.

Runs inside the `compat` environment (transformers 4, compressed-tensors 0.14.0.1) or inside
`peer-gptqmodel` (transformers 5, compressed-tensors 0.20.0):

    .venvs/compat/bin/python scripts/foreign_loaders/transformers_logits.py \\
        --model DIR --tokens tokens.npy --out logits.npy [--dtype float32]
"""

from __future__ import annotations

import json

import torch
import transformers
from common import Request, main
from transformers import AutoModelForCausalLM, CompressedTensorsConfig


def load(request: Request) -> torch.nn.Module:
    """The model, its weights decompressed; with dynamic activations, those are rounded."""
    if int(transformers.__version__.split(".")[0]) >= 5:
        return AutoModelForCausalLM.from_pretrained(request.model, dtype=request.dtype)
    settings = json.loads((request.model / "config.json").read_text(encoding="utf-8"))
    quantization = settings["quantization_config"]
    if quantization["quant_method"] == "compressed-tensors":
        del quantization["quant_method"]
        quantization = CompressedTensorsConfig(**quantization, run_compressed=False)
    return AutoModelForCausalLM.from_pretrained(
        request.model, torch_dtype=request.dtype, quantization_config=quantization
    )


if __name__ == "__main__":
    main(load, __doc__)
