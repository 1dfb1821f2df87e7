"""Budgets of steps that choose among settings: how much the linears may take. No torch."""

from __future__ import annotations

import math
from collections.abc import Sequence

from llmopt.model.change import Change
from llmopt.report.numbers import megabytes

#: what is wrong with candidates where there is no budget
CANDIDATES_ALONE = "only a budget chooses among candidates"
#: bytes of a tensor's entry in a safetensors header beside its name, and tensors of a linear
_ENTRY, _PARTS, _FILE = 110, 5, 4096


def byte_budget(
    changes: Sequence[Change], target_bpw: float | None, target_size: int | None
) -> int:
    """Bytes for all linears that have options, together.

    target_bpw counts their weights; target_size the weight files as a whole, what is kept and the
    files' headers included.
    """
    quantized = [change for change in changes if change.options]
    if target_bpw is not None:
        return int(sum(math.prod(change.shape) for change in quantized) * target_bpw / 8)
    kept = sum(change.bytes + len(change.name) + _ENTRY for change in changes if not change.options)
    headers = sum(_PARTS * (len(change.name) + _ENTRY) for change in quantized) + _FILE
    return (target_size or 0) - kept - headers


def goal(target_bpw: float | None, target_size: int | None) -> str:
    """A budget in words; "" for none."""
    if target_bpw is not None:
        return f"{target_bpw:g} bits per weight"
    return "" if target_size is None else f"{megabytes(target_size)} MB"
