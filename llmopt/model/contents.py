"""What a model holds: on disk, or once a step is done."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from llmopt.model.layout import Layout
from llmopt.specs.base import CHECKPOINT
from llmopt.specs.families import FamilySpec, Naming
from llmopt.specs.formats import PLAIN
from llmopt.specs.ggml import GGML_TYPES


@dataclass(frozen=True)
class LogicalTensor:
    """A tensor of the model: a quantized linear counts as one `<module>.weight`, [out, in].

    nbytes: what it takes on disk, all its parts together. layout: None where it is not quantized;
    dtype then says how it is stored, as headers do. settled: whether layout and nbytes are no
    stand-in for what a step has yet to choose.
    """

    name: str
    shape: tuple[int, ...]
    nbytes: int
    layout: Layout | None = None
    dtype: str = ""
    settled: bool = True

    @property
    def in_blocks(self) -> bool:
        """Whether it is no linear, and yet stored in blocks of a type of GGUF files."""
        return self.dtype in GGML_TYPES and GGML_TYPES[self.dtype].block > 1


@dataclass(frozen=True)
class Contents:
    """A model as plans see it: on disk, or what a step is going to write.

    `tensors` are logical ones under the names that our files have (Naming.rename), in the
    checkpoint's order. format: an id in specs.FORMATS; None where nothing is quantized. kind: what
    it lies in, an id in specs.KINDS.
    """

    config: dict[str, Any]
    family: FamilySpec
    naming: Naming
    tensors: Mapping[str, LogicalTensor]
    format: str | None
    kind: str = CHECKPOINT

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors on disk."""
        return sum(tensor.nbytes for tensor in self.tensors.values())

    @property
    def weight_count(self) -> int:
        """How many numbers the model has."""
        return sum(math.prod(tensor.shape) for tensor in self.tensors.values())

    @property
    def stored_as(self) -> str:
        """The format as manifests say it."""
        return self.format or (PLAIN if self.kind == CHECKPOINT else self.kind)

    @property
    def code_bits(self) -> float:
        """Mean bits of a code over the quantized linears; 16 where there is none."""
        layers = [(math.prod(t.shape), t.layout.bits) for t in self.tensors.values() if t.layout]
        count = sum(weights for weights, _ in layers)
        return sum(weights * bits for weights, bits in layers) / count if count else 16.0
