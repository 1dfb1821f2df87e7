"""What config.json says about a checkpoint with `quant_method: fp8`. No torch.

Two kinds exist: transformers' and DeepSeek's, whose `weight_scale_inv` has a value for every block
of weights or for all together, and AutoFP8's for vLLM, whose `weight_scale` is one value, and whose
config has `ignored_layers`. Both are read, neither is written.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from llmopt.errors import RequestError
from llmopt.model.layout import Layout


@dataclass(frozen=True, kw_only=True)
class Fp8Config:
    """The settings of a whole checkpoint.

    Scales of static activations belong to a linear and are not used, nor are dynamic activations
    rounded, which these engines do by blocks.
    """

    layout: Layout
    marker: str
    format = "fp8"

    @property
    def suffixes(self) -> tuple[str, ...]:
        return ("weight", self.marker, "input_scale", "activation_scale")

    @property
    def required(self) -> tuple[str, ...]:
        return ("weight",)

    def layer(self, module: str) -> Layout | None:  # noqa: ARG002  # one protocol for all formats
        """The layout of a module; the tensors, not the config, tell which are quantized."""
        return self.layout

    def shape(
        self,
        layout: Layout,  # noqa: ARG002  # one protocol for all formats
        parts: Mapping[str, tuple[int, ...]],
    ) -> tuple[int, int]:
        if len(parts["weight"]) != 2:
            raise RequestError("a quantized linear has a weight that is no matrix")
        rows, cols = parts["weight"]
        return rows, cols


def parse(stored: Mapping[str, Any]) -> Fp8Config:
    """The settings in a `quantization_config`; RequestError where they cannot be read."""
    kind = stored.get("fmt") or stored.get("weight_format") or "e4m3"
    if kind not in ("e4m3", "float8_e4m3fn"):
        raise RequestError(f"FP8 weights of the type {kind!r} cannot be read")
    if stored.get("kv_cache_scheme"):
        raise RequestError("the checkpoint quantizes the KV cache, too, which cannot be read")
    marker = "weight_scale" if "ignored_layers" in stored else "weight_scale_inv"
    block = stored.get("weight_block_size")
    if block is None:
        layout = Layout(grid="fp8", group_size=-1, symmetric=True)
        return Fp8Config(layout=layout, marker=marker)
    whole = isinstance(block, list) and all(type(size) is int and size > 0 for size in block)
    if not whole or len(block) != 2 or block[0] != block[1]:
        raise RequestError(f"FP8 weights in blocks of {block} cannot be read")
    layout = Layout(grid="fp8", group_size=int(block[0]), symmetric=True, blocks=True)
    return Fp8Config(layout=layout, marker=marker)
