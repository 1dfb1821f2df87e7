"""What the ledger says of a weight that was changed, and the certificate over all of it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from torch import Tensor

from llmopt.ledger import LedgerEntry
from llmopt.methods.quantize.base import InletStatistics


def compared(found: Tensor, weight: Tensor, statistics: InletStatistics | None) -> dict[str, Any]:
    """Relative errors of a linear's values [out, in], and of its outputs where inputs are known."""
    change = found - weight
    record: dict[str, Any] = {"error": ratio(change.square().sum(), weight.square().sum())}
    if statistics is not None:
        hessian = statistics.hessian
        lost = ((change @ hessian) * change).sum()
        record["output_error"] = ratio(lost, ((weight @ hessian) * weight).sum())
        record["tokens"] = statistics.tokens
    return record


def ratio(part: Tensor | float, whole: Tensor | float) -> float:
    """sqrt(part / whole), to six significant digits; 0 where both are."""
    value = math.sqrt(max(float(part), 0.0) / float(whole)) if float(whole) > 0 else 0.0
    return float(f"{value:.6g}")


def certificate(ledger: Sequence[LedgerEntry]) -> dict[str, Any]:
    """How many tensors hold the very values that the source decodes to, and how far others are."""
    errors = [entry.error or 0.0 for entry in ledger if not entry.exact]
    return {
        "exact": len(ledger) - len(errors),
        "rounded": len(errors),
        "largest_error": max(errors, default=0.0),
    }
