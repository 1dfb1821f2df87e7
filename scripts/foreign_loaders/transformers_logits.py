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

_TRANSFORMERS_5 = int(transformers.__version__.split(".")[0]) >= 5


def load(request: Request) -> torch.nn.Module:
    """The model, its weights decompressed; with dynamic activations, those are rounded.

    transformers 4 leaves decompressed weights in the dtype of their scales. transformers 5 finds
    packed zero points only where it decompresses every weight while it loads.
    """
    settings = json.loads((request.model / "config.json").read_text(encoding="utf-8"))
    quantization = settings["quantization_config"]
    options = {}
    if quantization.pop("quant_method") == "compressed-tensors":
        groups = quantization["config_groups"].values()
        if not _TRANSFORMERS_5:
            options["quantization_config"] = CompressedTensorsConfig(
                **quantization, run_compressed=False
            )
        elif not all(group["weights"]["symmetric"] for group in groups):
            options["quantization_config"] = CompressedTensorsConfig(dequantize=True)
    dtype = {"dtype" if _TRANSFORMERS_5 else "torch_dtype": request.dtype}
    model = AutoModelForCausalLM.from_pretrained(request.model, **dtype, **options)
    return model.to(request.dtype)


if __name__ == "__main__":
    main(load, __doc__)
