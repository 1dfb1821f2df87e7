"""Predicted peak memory and disk of a step, from shapes alone. No torch."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from llmopt.fates import TensorFate
from llmopt.formats.headers import DTYPE_BYTES, Headers
from llmopt.specs.families import family_of

#: resident memory of Python with torch and transformers loaded, before any model (measured)
_LIBRARIES = 480 << 20
#: working copies of a layer's Hessian at the worst moment: itself, its permuted copy, the factor
_HESSIAN_COPIES = 4


@dataclass(frozen=True)
class Footprint:
    """Bytes a step needs at its peak, beside what the system has mapped and can drop."""

    memory_bytes: int
    disk_bytes: int


NOTHING = Footprint(0, 0)


def quantize_footprint(
    headers: Headers,
    fates: Sequence[TensorFate],
    calibration: dict[str, Any] | None,
    batch_size: int,
) -> Footprint:
    """One block in float32, the activations, and the largest Hessian with its factor."""
    naming = family_of(headers.config).naming(headers.tensors)
    blocks: dict[int | None, int] = defaultdict(int)
    for stored, header in headers.tensors.items():
        size = math.prod(header.shape) * 4
        blocks[naming.block_of(naming.rename(stored))] += size
    outside = max(
        (math.prod(h.shape) * 4 for n, h in headers.tensors.items()
         if naming.block_of(naming.rename(n)) is None),
        default=0,
    )  # fmt: skip
    block = max((size for index, size in blocks.items() if index is not None), default=0)
    written = sum(f.bytes for f in fates)
    if calibration is None:
        return Footprint(_LIBRARIES + 2 * max(block, outside), written * 2)
    hidden = _hidden_size(headers)
    activations = calibration["sequences"] * calibration["length"] * hidden * 4
    widest = max((f.shape[1] for f in fates if f.quantize), default=0)
    batch = batch_size * calibration["length"] * max(widest, hidden) * 4 * 6
    hessian = widest * widest * 4 * _HESSIAN_COPIES
    memory = _LIBRARIES + max(2 * block + hessian, outside) + activations + batch
    return Footprint(memory, written * 2 + activations)


def bench_footprint(headers: Headers, models: int, evaluation: dict[str, Any]) -> Footprint:
    """Two models in float32 at a time, and the logits of one window from both."""
    weights = sum((h.end - h.start) // DTYPE_BYTES[h.dtype] * 4 for h in headers.tensors.values())
    logits = evaluation["length"] * int(headers.config.get("vocab_size", 0)) * 4
    return Footprint(_LIBRARIES + min(models, 2) * weights + 6 * logits, 1 << 20)


def _hidden_size(headers: Headers) -> int:
    for name in ("hidden_size", "n_embd", "d_model"):
        if isinstance(headers.config.get(name), int):
            return int(headers.config[name])
    text = headers.config.get("text_config")
    return int(text["hidden_size"]) if isinstance(text, dict) else 0
