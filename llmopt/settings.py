"""How a linear is quantized, and what it takes on disk then. No torch."""

from __future__ import annotations

from dataclasses import dataclass

from llmopt.formats.layout import LayerLayout
from llmopt.specs import GRIDS
from llmopt.specs.base import FormatSpec
from llmopt.specs.ggml import GGML_TYPES


@dataclass(frozen=True)
class LinearSettings:
    """How one linear is quantized. Its grid may come from an override."""

    grid: str
    bits: int
    group_size: int
    symmetric: bool
    activations: str | None = None
    blocks: bool = False

    @property
    def label(self) -> str:
        return self.layout.label

    @classmethod
    def of(cls, layout: LayerLayout) -> LinearSettings:
        """The settings that a layout is written with."""
        return cls(
            layout.grid, layout.bits, layout.group_size, layout.symmetric, layout.activations,
            layout.blocks,
        )  # fmt: skip

    @property
    def packs(self) -> bool:
        """Whether codes share a word; what is computed with as it is stored has a byte for each."""
        return not (self.grid == "fp8" or self.activations)

    @property
    def layout(self) -> LayerLayout:
        return LayerLayout(
            grid=self.grid,
            group_size=self.group_size,
            symmetric=self.symmetric,
            activations=self.activations,
            blocks=self.blocks,
        )

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
        return size + 4 * cols * spec.stores_index
