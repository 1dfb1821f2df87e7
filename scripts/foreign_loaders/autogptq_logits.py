"""Logits of a GPTQ checkpoint as auto-gptq computes them, on CPU.

Runs inside the `compat` environment (requirements/compat.txt), never inside llmopt's own:

    .venvs/compat/bin/python scripts/foreign_loaders/autogptq_logits.py \\
        --model DIR --tokens tokens.npy --out logits.npy [--dtype float16]

Two limits of auto-gptq 0.7.1 show here rather than as wrong numbers:

- it ignores `checkpoint_format` and always adds one to the stored zero points, so a v2 checkpoint
  would load with every zero point off by one and no warning: it is refused;
- it loses an embedding that is tied to the head, unless the file repeats it as lm_head.weight: it
  loads the embedding, then ties it back to the head, which it never filled. The stored embedding
  is put back after loading.
"""

from __future__ import annotations

import json
from pathlib import Path

import torch
from auto_gptq import AutoGPTQForCausalLM
from common import Request, main
from safetensors import safe_open


def refuse_unreadable(folder: Path) -> None:
    """SystemExit where auto-gptq would read the folder's zero points wrongly."""
    settings = json.loads((folder / "quantize_config.json").read_text(encoding="utf-8"))
    version = settings.get("checkpoint_format", "gptq")
    if version != "gptq":
        raise SystemExit(
            f"{folder}: auto-gptq reads only checkpoint_format gptq (v1), not {version}"
        )


def restore_tied_embedding(model: torch.nn.Module, folder: Path) -> None:
    """Copy the stored input embedding into a model whose head shares it."""
    shared = model.get_input_embeddings().weight
    name = next(name for name, parameter in model.named_parameters() if parameter is shared)
    for file in sorted(folder.glob("*.safetensors")):
        with safe_open(file, framework="pt") as tensors:
            if name in set(tensors.keys()):
                shared.data.copy_(tensors.get_tensor(name))


def load(request: Request) -> torch.nn.Module:
    """The model with auto-gptq's plain torch kernel: no CUDA, no fused modules."""
    refuse_unreadable(request.model)
    model = AutoGPTQForCausalLM.from_quantized(
        str(request.model), device="cpu", torch_dtype=request.dtype, use_safetensors=True
    ).model
    if model.get_output_embeddings().weight is model.get_input_embeddings().weight:
        restore_tied_embedding(model, request.model)
    return model


if __name__ == "__main__":
    main(load, __doc__)
