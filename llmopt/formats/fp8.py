"""FP8 checkpoints of DeepSeek, transformers and AutoFP8: read, not written.

For a linear of `in` inputs and `out` outputs, with blocks of g x g weights:

    weight            float8_e4m3fn [out, in]
    weight_scale_inv  float32 [ceil(out / g), ceil(in / g)], or one value for the whole weight

Despite its name a value is multiplied: it is the inverse of what quantizing multiplied by. A row's
groups get the scales of its blocks. AutoFP8 calls its one value weight_scale.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from llmopt.errors import LlmoptError
from llmopt.formats import compressed_tensors
from llmopt.grids.base import QuantizedTensor
from llmopt.model.layout import Layout

_READ_ONLY = "FP8 checkpoints with block scales are read, not written: compressed-tensors holds FP8"


@dataclass(frozen=True)
class Codec:
    """This layout, for reading."""

    version: str | None = None

    def accepts(self, tensor: QuantizedTensor) -> str | None:  # noqa: ARG002  # one protocol for all formats
        """Nothing is written in this layout."""
        return _READ_ONLY

    def pack(
        self,
        tensor: QuantizedTensor,  # noqa: ARG002  # one protocol for all formats
    ) -> dict[str, Tensor]:
        """Nothing is written in this layout: LlmoptError."""
        raise LlmoptError(_READ_ONLY)

    def unpack(self, stored: Mapping[str, Tensor], layout: Layout) -> QuantizedTensor:
        """A stored linear; RequestError where the parts do not fit each other."""
        scales = {name: value for name, value in stored.items() if name.startswith("weight_scale")}
        renamed = {"weight": stored["weight"], "weight_scale": next(iter(scales.values()))}
        return compressed_tensors.Codec().unpack(renamed, layout)
