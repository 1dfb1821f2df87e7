"""How one linear is quantized, as a checkpoint's config says it. No torch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Protocol, cast

from llmopt.model.layout import Layout, ggml_layout
from llmopt.specs.ggml import GGML_TYPES

if TYPE_CHECKING:
    from llmopt.grids.base import Quantized, QuantizedTensor


def layout_of(tensor: Quantized) -> Layout:
    """What a config has to say about a tensor."""
    if tensor.grid in GGML_TYPES:
        return ggml_layout(tensor.grid)
    tensor = cast("QuantizedTensor", tensor)
    params = tensor.params
    return Layout(
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

    def layer(self, module: str) -> Layout | None:
        """The layout of a linear; None where it is left unquantized."""

    def shape(self, layout: Layout, parts: Mapping[str, tuple[int, ...]]) -> tuple[int, int]:
        """(outputs, inputs) of a linear whose tensors, by suffix, have these shapes."""
