"""Logits of a bitsandbytes checkpoint as transformers computes them with that package, on CPU.

Runs inside the `peer-gptqmodel` environment:

    .venvs/peer-gptqmodel/bin/python scripts/foreign_loaders/bitsandbytes_logits.py \\
        --model DIR --tokens tokens.npy --out logits.npy [--dtype float32]

transformers keeps what is not quantized as it is stored, whatever dtype is asked for, and
bitsandbytes decodes NF4 to the dtype that the file names. Here both become --dtype. LLM.int8()
rounds activations, computes in float16 and needs nothing changed.
"""

from __future__ import annotations

import torch
from bitsandbytes.nn import Linear4bit, Linear8bitLt
from common import Request, main
from transformers import AutoModelForCausalLM


def load(request: Request) -> torch.nn.Module:
    model = AutoModelForCausalLM.from_pretrained(request.model, dtype=request.dtype)
    for module in model.modules():
        if isinstance(module, Linear4bit):
            module.compute_dtype = request.dtype
            module.weight.quant_state.dtype = request.dtype
        elif not isinstance(module, Linear8bitLt):
            for tensor in (*module.parameters(recurse=False), *module.buffers(recurse=False)):
                if tensor.is_floating_point():
                    tensor.data = tensor.data.to(request.dtype)
    return model


if __name__ == "__main__":
    main(load, __doc__)
