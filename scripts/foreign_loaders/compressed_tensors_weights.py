"""The weights of a compressed-tensors checkpoint as that package decompresses them.

Runs inside the `compat` environment, which has version 0.14.0.1, the last for transformers 4, or
inside `peer-gptqmodel`, which has 0.20.0:

    .venvs/compat/bin/python scripts/foreign_loaders/compressed_tensors_weights.py \\
        --model DIR --out weights.safetensors [--wide]

The package itself says which scheme a linear has, from the config's targets and ignore list. The
two versions differ in what they read: 0.20 refuses act-order with stored groups ("actorder:
group"), which it dropped, and 0.14 packs 3-bit codes ten to a word.
"""

from __future__ import annotations

from typing import Any

import torch
from common import decode_all
from compressed_tensors.compressors import BaseCompressor
from compressed_tensors.quantization import QuantizationConfig
from compressed_tensors.utils.match import is_match, match_targets


def decode(
    parts: dict[str, torch.Tensor], module: str, config: dict[str, Any]
) -> torch.Tensor | None:
    """What the compressor of the linear's scheme makes of its stored tensors."""
    parsed = QuantizationConfig.model_validate(config)
    schemes = {target: s for s in parsed.config_groups.values() for target in s.targets}
    linear = torch.nn.Linear(1, 1, device="meta")
    targets = match_targets(module, linear, schemes)
    if not targets or is_match(module, linear, parsed.ignore):
        return None
    scheme = schemes[targets[0]]
    compressor = BaseCompressor.get_value_from_registry(scheme.format or parsed.format)
    if hasattr(compressor, "decompress_weight"):  # before 0.15
        return compressor(config=parsed).decompress_weight(parts, scheme.weights)
    return compressor.decompress(parts, scheme)["weight"]


if __name__ == "__main__":
    decode_all(decode, "weight_scale", __doc__)
