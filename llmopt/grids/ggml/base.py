"""What every block format of ggml provides: encoding, decoding, and the pieces feedback needs.

A weight is stored as uint8 [rows, bytes of a row]; a row is a sequence of blocks, each of which
stands alone. `blocks` below are the blocks of all rows one after another, [n, width].
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Protocol

from torch import Tensor

#: float16 times the largest scale and level of any type, Q6_K's 128 and 32, is below this
LARGEST = 2.0**28

#: "reference" writes what ggml's own encoder writes, "best" looks further in the same layout
Search = Literal["reference", "best"]

#: what a block stores beside its codes, by name: tensors whose first dimension is n
Fields = dict[str, Tensor]


@dataclass(frozen=True, kw_only=True)
class BlockTensor:
    """A weight as a GGUF file holds it. grid: an id in specs.ggml. data: uint8 [rows, bytes].

    losses: float64 [rows], as `QuantizedTensor`'s.
    """

    grid: str
    data: Tensor
    losses: Tensor | None = None


@dataclass(frozen=True, kw_only=True)
class BlockLattice:
    """The values that weights of a block may take: scale * level(code) + offset.

    scale, offset: float32 [n, width]. levels: float32 [k], ascending, indexed by code; None where
    the level is the code itself, a whole number from 0 to top.
    """

    scale: Tensor
    offset: Tensor
    top: int
    levels: Tensor | None = None


class BlockGrid(Protocol):
    """One ggml type. Pure tensor functions; nothing is modified in place.

    on_cpu: whether all tensors have to be on the CPU; else any device will do, the same for all.
    largest: no block holds weights of a larger magnitude.
    """

    on_cpu: bool
    largest: float

    def encode(self, w: Tensor, importance: Tensor | None, search: Search) -> Tensor:
        """w float32 [rows, cols] -> uint8 [rows, bytes]; importance [cols] weighs squared errors.

        The reference search follows the order of ggml's sums, which holds on the CPU. For "best"
        importance is > 0. RequestError where a scale is too large for float16, also from `pack`.
        """

    def decode(self, data: Tensor) -> Tensor:
        """uint8 [rows, bytes] -> float32 [rows, cols], bit for bit what ggml decodes."""


class ScalarGrid(BlockGrid, Protocol):
    """A type in which every weight has a code of its own."""

    def fit(self, blocks: Tensor, importance: Tensor) -> Fields:
        """The stored fields (scales, minimums) that lose least for blocks [n, width] float32.

        importance: [n, width], or what broadcasts to it, > 0.
        """

    def refit(self, blocks: Tensor, codes: Tensor, importance: Tensor) -> Fields:
        """The stored fields that lose least when the codes [n, width] are to stay as they are."""

    def lattice(self, fields: Fields) -> BlockLattice:
        """What the fields say of the values."""

    def pack(self, fields: Fields, codes: Tensor) -> Tensor:
        """uint8 [n, nbytes] from fields and codes [n, width]."""


class VectorGrid(BlockGrid, Protocol):
    """A type in which `vector` consecutive weights share a code from a codebook."""

    vector: int

    def fit(self, blocks: Tensor, importance: Tensor) -> Fields:
        """As in ScalarGrid."""

    def refit(self, blocks: Tensor, codes: Tensor, importance: Tensor) -> Fields:
        """As in ScalarGrid, with codes int64 [n, width / vector]."""

    def choose(
        self,
        fields: Fields,
        index: int,
        x: Tensor,
        importance: Tensor,
        metric: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Codes int64 [n] and values float32 [n, vector] for the vectors at `index` of each block.

        x: [n, vector], what is to be met; importance [n, vector] or what broadcasts to it. With
        metric [vector, vector], positive definite, an error e of a vector costs e^T metric e; types
        for which that would take much longer go by importance, its diagonal, all the same.
        """

    def pack(self, fields: Fields, codes: Tensor) -> Tensor:
        """uint8 [n, nbytes] from fields and codes int64 [n, width / vector]."""
