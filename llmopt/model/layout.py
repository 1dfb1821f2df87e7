"""How a linear is stored quantized, and what it takes on disk then."""

from __future__ import annotations

from dataclasses import dataclass

from llmopt.specs import GRIDS
from llmopt.specs.base import FormatSpec
from llmopt.specs.ggml import GGML_TYPES


@dataclass(frozen=True, kw_only=True)
class Layout:
    """What a config says of a linear; the shapes of its tensors say the rest.

    group_size -1 is one group per output channel. desc_act: the group of each input is stored.
    activations: the grid that inputs are rounded to, per token, when it computes; None: none.
    blocks: `group_size` output channels share their scales, too: FP8 as DeepSeek stores it. In a
    config `activations` are then rounded in groups of that size; no runtime here does.
    """

    grid: str
    group_size: int
    symmetric: bool
    desc_act: bool = False
    activations: str | None = None
    blocks: bool = False

    @property
    def bits(self) -> int:
        """Bits of a code."""
        ggml = GGML_TYPES.get(self.grid)
        return int(ggml.bits) if ggml else GRIDS[self.grid].bits

    @property
    def label(self) -> str:
        """As tables show it, e.g. "int4 g128 sym"; a ggml type says it all by its name."""
        if self.grid in GGML_TYPES:
            return self.grid
        size = self.group_size
        group = "row" if size == -1 else f"{size}x{size}" if self.blocks else f"g{size}"
        label = f"{self.grid} {group} {'sym' if self.symmetric else 'asym'}"
        return f"{label}, {self.activations} activations" if self.activations else label

    @property
    def packs(self) -> bool:
        """Whether codes share a word; what is computed with as it is stored has a byte for each."""
        return not (self.grid == "fp8" or self.activations)

    def bytes(
        self, shape: tuple[int, int], spec: FormatSpec, scale_bytes: int | None = None
    ) -> int:
        """What a linear [outputs, inputs] takes on disk in a format.

        scale_bytes: of scales that come from another format, where they stay as wide as there.
        """
        rows, cols = shape
        if (ggml := GGML_TYPES.get(self.grid)) is not None:
            return rows * cols // ggml.block * ggml.nbytes
        sharing = -(-rows // self.group_size) if self.blocks else rows
        in_row = 1 if self.group_size == -1 else -(-cols // self.group_size)
        scale = scale_bytes or spec.scale_bytes or GRIDS[self.grid].scale_bytes
        size = rows * cols * self.bits // 8 + sharing * in_row * scale
        if spec.stores_zeros or not self.symmetric:
            size += in_row * -(-rows * self.bits // 32) * 4  # packed in words
        if self.activations is None and self.grid != "fp8":
            size += spec.shape_bytes + spec.shape_in_text * len(f"{rows}, {cols}")
        return size + 4 * cols * (spec.stores_index or self.desc_act)


def ggml_layout(type_id: str) -> Layout:
    """The layout of a linear stored as a ggml type."""
    spec = GGML_TYPES[type_id]
    return Layout(grid=type_id, group_size=spec.group_size, symmetric=spec.symmetric)
