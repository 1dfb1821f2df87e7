"""The weights of a bitsandbytes checkpoint as that package's own functions decode them.

Runs inside the `peer-gptqmodel` environment:

    .venvs/peer-gptqmodel/bin/python scripts/foreign_loaders/bitsandbytes_weights.py \\
        --model DIR --out weights.safetensors --wide

With --wide NF4 comes in float32, else in the dtype that its quant_state names. LLM.int8() weights
are float32 always.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch
from bitsandbytes.functional import QuantState, dequantize_4bit, int8_vectorwise_dequant
from common import decode_all


def four_bits(parts: dict[str, torch.Tensor], module: str, config: dict[str, Any]) -> torch.Tensor:  # noqa: ARG001
    """dequantize_4bit of the state that Params4bit.from_prequantized would make."""
    stored = {name: tensor for name, tensor in parts.items() if name.startswith("weight.")}
    state = QuantState.from_dict(stored, device=torch.device("cpu"))
    if "--wide" in sys.argv:
        state.dtype = torch.float32
    return dequantize_4bit(parts["weight"], state)


def eight_bits(parts: dict[str, torch.Tensor], module: str, config: dict[str, Any]) -> torch.Tensor:  # noqa: ARG001
    """int8 * SCB * (1 / 127) in float32."""
    return int8_vectorwise_dequant(parts["weight"], parts["SCB"])


if __name__ == "__main__":
    folder = Path(sys.argv[sys.argv.index("--model") + 1])
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    if config["quantization_config"]["load_in_4bit"]:
        decode_all(four_bits, "weight.absmax", __doc__)
    else:
        decode_all(eight_bits, "SCB", __doc__)
