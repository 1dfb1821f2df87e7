"""What the ledger says of a weight that was changed, and the certificate over all of it."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from llmopt.blockwalk.sink import Record
from llmopt.errors import LlmoptError, RequestError
from llmopt.linalg import InputStatistics
from llmopt.model.ledger import LedgerEntry


def compared(found: Tensor, weight: Tensor, statistics: InputStatistics | None) -> Record:
    """Relative errors of a linear's values [out, in], and of its outputs where E[x x^T] is known.

    RequestError where nothing is left of the weight.
    """
    if bool(weight.any()) and not bool(found.any()):
        raise too_small()
    unit = _unit(weight)
    change = found - weight
    if unit != 1:
        change, weight = change / unit, weight / unit
    record: Record = {"error": ratio(change.square().sum(), weight.square().sum())}
    if statistics is not None:
        if statistics.wanted.hessian:
            lost, whole = statistics.losses(change).sum(), statistics.losses(weight).sum()
            record["output_error"] = ratio(lost, whole)
        record["tokens"] = statistics.tokens
    return record


def too_small() -> RequestError:
    """What is wrong where a format has no values as small as the weights."""
    return RequestError(
        "nothing is left of the weights, which are too small for scales in float16",
        hint="BF16, fp8 and nf4 hold smaller ones",
    )


def _unit(weight: Tensor) -> float:
    """What to divide by so that squares are neither zero nor infinite in float32; mostly 1."""
    low, high = torch.aminmax(weight) if weight.numel() else (0.0, 0.0)
    largest = max(-float(low), float(high))
    return 1.0 if largest == 0 or 2.0**-30 < largest < 2.0**30 else largest


def energy(values: Tensor) -> float:
    """The sum of squares of values [n]; in float64 where float32 does not hold it."""
    found = float(values @ values)
    return found if 0 < found < math.inf else float(values.double() @ values.double())


def ratio(part: Tensor | float, whole: Tensor | float) -> float:
    """sqrt(part / whole), to six significant digits; 0 where both are.

    LlmoptError where that is no number: a ledger never holds null for an error.
    """
    value = math.sqrt(max(float(part), 0.0) / float(whole)) if float(whole) > 0 else 0.0
    if not math.isfinite(value) or not math.isfinite(float(part)):
        raise LlmoptError("its error is no number: weights or activations are too large")
    return float(f"{value:.6g}")


def certificate(ledger: Sequence[LedgerEntry]) -> dict[str, int | float]:
    """How many tensors hold the very values that the source decodes to, and how far others are."""
    errors = [entry.error or 0.0 for entry in ledger if not entry.is_exact]
    return {
        "exact": sum(entry.written for entry in ledger) - len(errors),
        "rounded": len(errors),
        "largest_error": max(errors, default=0.0),
    }
