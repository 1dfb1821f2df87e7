"""How one linear is quantized, as a checkpoint's config says it. No torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, cast

from llmopt.specs import GRIDS
from llmopt.specs.ggml import GGML_TYPES

if TYPE_CHECKING:
    from llmopt.grids.base import Quantized, QuantizedTensor


@dataclass(frozen=True, kw_only=True)
class LayerLayout:
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


def ggml_layout(type_id: str) -> LayerLayout:
    """The layout of a linear stored as a ggml type."""
    spec = GGML_TYPES[type_id]
    return LayerLayout(grid=type_id, group_size=spec.group_size, symmetric=spec.symmetric)


def layout_of(tensor: Quantized) -> LayerLayout:
    """What a config has to say about a tensor."""
    if tensor.grid in GGML_TYPES:
        return ggml_layout(tensor.grid)
    tensor = cast("QuantizedTensor", tensor)
    params = tensor.params
    return LayerLayout(
        grid=tensor.grid,
        group_size=params.group_size,
        symmetric=params.symmetric,
        desc_act=params.group_index is not None,
        activations=tensor.activations,
        blocks=tensor.grid == "fp8" and params.group_size != -1,  # in groups alone none is stored
    )


class Quantization(Protocol):
    """The settings of a quantized checkpoint, read from its config.

    format: an id in specs.FORMATS. suffixes: of the tensors that a quantized linear may be stored
    as; `required` are those it always has, `marker` is one that no other module has.
    """

    @property
    def format(self) -> str: ...

    @property
    def suffixes(self) -> tuple[str, ...]: ...

    @property
    def required(self) -> tuple[str, ...]: ...

    @property
    def marker(self) -> str: ...

    def layer(self, module: str) -> LayerLayout | None:
        """The layout of a linear; None where it is left unquantized."""

    def shape(self, layout: LayerLayout, parts: Mapping[str, tuple[int, ...]]) -> tuple[int, int]:
        """(outputs, inputs) of a linear whose tensors, by suffix, have these shapes."""
