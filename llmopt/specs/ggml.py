"""The number formats of ggml's files: how many weights a block has, and how many bytes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

#: what ggml's own encoder does with an importance matrix
Importance = Literal["required", "used", "ignored"]


@dataclass(frozen=True, kw_only=True)
class GgmlType:
    """A type that tensors in a GGUF file may have.

    number: ggml_type. block: weights that are stored together, consecutive in a row. nbytes: of a
    block. module: implements llmopt.grids.ggml.base.BlockGrid; empty where weights are plain
    floats.
    """

    id: str
    number: int
    block: int
    nbytes: int
    module: str = ""
    importance: Importance = "ignored"

    @property
    def group_size(self) -> int:
        """Weights that share a scale, or nearly so: a few types have groups of 16."""
        return min(self.block, 32)

    @property
    def symmetric(self) -> bool:
        """Whether it has no minimums."""
        return self.id not in _WITH_MINIMUMS

    @property
    def is_float(self) -> bool:
        """Whether weights are plain floats, without blocks."""
        return not self.module

    @property
    def is_integer(self) -> bool:
        """Whether weights are whole numbers times a scale in float16, plus perhaps a minimum."""
        return self.module == _ROUND

    @property
    def bits(self) -> float:
        """Stored bits per weight, scales and all."""
        return self.nbytes * 8 / self.block


_ROUND = "llmopt.grids.ggml.legacy"
_K = "llmopt.grids.ggml.kquants"
_FLOAT = "llmopt.grids.ggml.floats"
_TERNARY = "llmopt.grids.ggml.ternary"
_TABLE = "llmopt.grids.ggml.table"
_IQ3 = "llmopt.grids.ggml.iq3"
_IQ2 = "llmopt.grids.ggml.iq2"
_IQ1 = "llmopt.grids.ggml.iq1"

_WITH_MINIMUMS = frozenset({"Q4_1", "Q5_1", "Q2_K", "Q4_K", "Q5_K"})

#: (id, number, block, nbytes, module, importance)
_TYPES: tuple[tuple[str, int, int, int, str, Importance], ...] = (
    ("F32", 0, 1, 4, "", "ignored"),
    ("F16", 1, 1, 2, "", "ignored"),
    ("BF16", 30, 1, 2, "", "ignored"),
    ("Q4_0", 2, 32, 18, _ROUND, "used"),
    ("Q4_1", 3, 32, 20, _ROUND, "used"),
    ("Q5_0", 6, 32, 22, _ROUND, "used"),
    ("Q5_1", 7, 32, 24, _ROUND, "used"),
    ("Q8_0", 8, 32, 34, _ROUND, "ignored"),
    ("Q2_K", 10, 256, 84, _K, "used"),
    ("Q3_K", 11, 256, 110, _K, "used"),
    ("Q4_K", 12, 256, 144, _K, "used"),
    ("Q5_K", 13, 256, 176, _K, "used"),
    ("Q6_K", 14, 256, 210, _K, "used"),
    ("IQ4_NL", 20, 32, 18, _TABLE, "used"),
    ("IQ4_XS", 23, 256, 136, _TABLE, "used"),
    ("IQ3_XXS", 18, 256, 98, _IQ3, "used"),
    ("IQ3_S", 21, 256, 110, _IQ3, "used"),
    ("IQ2_XXS", 16, 256, 66, _IQ2, "required"),
    ("IQ2_XS", 17, 256, 74, _IQ2, "required"),
    ("IQ2_S", 22, 256, 82, _IQ2, "used"),
    ("IQ1_S", 19, 256, 50, _IQ1, "required"),
    ("IQ1_M", 29, 256, 56, _IQ1, "used"),
    ("TQ1_0", 34, 256, 54, _TERNARY, "ignored"),
    ("TQ2_0", 35, 256, 66, _TERNARY, "ignored"),
    ("MXFP4", 39, 32, 17, _FLOAT, "ignored"),
    ("NVFP4", 40, 64, 36, _FLOAT, "ignored"),
)

GGML_TYPES: dict[str, GgmlType] = {
    id_: GgmlType(
        id=id_, number=number, block=block, nbytes=nbytes, module=module, importance=importance
    )
    for id_, number, block, nbytes, module, importance in _TYPES
}
