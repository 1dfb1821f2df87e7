"""The weights of an AWQ checkpoint as autoawq's own functions unpack them.

Runs inside the `compat` environment (requirements/compat.txt):

    .venvs/compat/bin/python scripts/foreign_loaders/autoawq_weights.py \\
        --model DIR --out weights.safetensors [--wide]

autoawq loads whole models on CPU only with Intel's extension for PyTorch, which it replaces its
modules with; its functions that unpack are plain torch.
"""

from __future__ import annotations

from typing import Any

import torch
from awq.utils.packing_utils import dequantize_gemm
from common import decode_all


def decode(parts: dict[str, torch.Tensor], module: str, config: dict[str, Any]) -> torch.Tensor:  # noqa: ARG001
    """dequantize_gemm calls unpack_awq and reverse_awq_order, and gives [in, out]."""
    group_size = config["group_size"]
    return dequantize_gemm(
        parts["qweight"], parts["qzeros"], parts["scales"], config["bits"], group_size
    ).T


if __name__ == "__main__":
    decode_all(decode, "qweight", __doc__)
