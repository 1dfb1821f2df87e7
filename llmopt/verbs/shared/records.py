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

#: weights that are compared at once
_PIECE = 1 << 24


class RoundingErrors:
    """What became of a linear, some rows at a time.

    statistics: of its inputs, where they are known. exact: whether all values are the weights.
    """

    def __init__(self, statistics: InputStatistics | None = None) -> None:
        self._statistics = statistics
        self.exact = True
        self._left, self._any = False, False
        self._sums = {"error": [0.0, 0.0]}
        if statistics is not None and statistics.wanted.hessian:
            self._sums["output_error"] = [0.0, 0.0]

    @classmethod
    def of(cls, found: Tensor, weight: Tensor) -> RoundingErrors:
        """Of all rows."""
        errors = cls()
        errors.add(found, weight)
        return errors

    @property
    def error(self) -> float:
        """The relative error of the values."""
        return ratio(*self._sums["error"])

    def add(self, found: Tensor, weight: Tensor, losses: Tensor | None = None) -> None:
        """Values that rows got, [n, cols] in any dtype, and what they were before, float32.

        losses: [n], as `QuantizedTensor`'s; what is known is not computed again.
        """
        step = max(1, _PIECE // weight.shape[1])
        for start in range(0, len(weight), step):
            rows = slice(start, start + step)
            values, before = found[rows].to(torch.float32), weight[rows]
            self.exact = self.exact and torch.equal(values, before)
            self._left = self._left or bool(values.any())
            self._any = self._any or bool(before.any())
            self._add_sums(values, before, None if losses is None else losses[rows])

    def record(self) -> Record:
        """Relative errors of the values, and of the outputs where E[x x^T] is known.

        RequestError where nothing is left of the weight.
        """
        if self._any and not self._left:
            raise too_small()
        found: Record = {name: ratio(*sums) for name, sums in self._sums.items()}
        return found if self._statistics is None else found | {"tokens": self._statistics.tokens}

    def _add_sums(self, values: Tensor, weight: Tensor, losses: Tensor | None) -> None:
        unit, change = _unit(weight), values - weight
        if unit != 1:
            change, weight, losses = change / unit, weight / unit, None
        for name, sums in self._sums.items():
            known = float(losses.sum()) if losses is not None and name == "output_error" else None
            lost = self._loss(name, change) if known is None else known
            sums[0] += unit * unit * lost
            sums[1] += unit * unit * self._loss(name, weight)

    def _loss(self, name: str, change: Tensor) -> float:
        if name == "output_error":
            assert self._statistics is not None
            return float(self._statistics.losses(change).sum())
        return float(change.square().sum())


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
