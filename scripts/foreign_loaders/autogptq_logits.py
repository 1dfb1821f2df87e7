"""Logits of a GPTQ checkpoint as auto-gptq computes them, on CPU.

Runs inside the `compat` environment (requirements/compat.txt), never inside llmopt's own:

    .venvs/compat/bin/python scripts/foreign_loaders/autogptq_logits.py \\
        --model DIR --tokens tokens.npy --out logits.npy [--dtype float16]

auto-gptq 0.7.1 reads quantize_config.json (else config.json's quantization_config), ignores
`checkpoint_format` and always adds one to the stored zero points. A v2 checkpoint would load with
every zero point off by one and no warning, so it is refused here.
"""

from __future__ import annotations

import json
from pathlib import Path

import torch
from auto_gptq import AutoGPTQForCausalLM
from common import Request, main


def load(request: Request) -> torch.nn.Module:
    """The model with auto-gptq's plain torch kernel (no fused modules, no CUDA)."""
    settings_file = request.model / "quantize_config.json"
    if not settings_file.is_file():
        raise SystemExit(f"{request.model}: no quantize_config.json")
    settings = json.loads(Path(settings_file).read_text())
    if settings.get("checkpoint_format", "gptq") != "gptq":
        raise SystemExit(
            f"{request.model}: auto-gptq reads only checkpoint_format gptq (v1), "
            f"not {settings['checkpoint_format']}"
        )
    wrapper = AutoGPTQForCausalLM.from_quantized(
        str(request.model), device="cpu", torch_dtype=request.dtype, use_safetensors=True
    )
    return wrapper.model


if __name__ == "__main__":
    main(load, __doc__)
