"""What config.json says about a bitsandbytes checkpoint, and what its headers leave out. No torch.

A checkpoint is 4-bit or 8-bit as a whole. `llm_int8_skip_modules` lists, for both, what is left as
it is; loaders take its entries for full names, for starts or ends of names, or for regular
expressions, as their version goes: full names mean the same to all. Which linears are quantized
is read from the tensors.

A packed 4-bit weight is stored as [n / 2, 1]. Its matrix's shape stands in a JSON text, which is a
tensor of bytes beside it (`with_shapes`).
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from llmopt.artifact import JsonObject
from llmopt.errors import RequestError
from llmopt.formats.engine_names import OWN_NAMES, EngineNames
from llmopt.formats.tensor_header import TensorHeader
from llmopt.model.layout import Layout

FOUR_BIT = "nf4"
EIGHT_BIT = "int8"
BLOCK = 64
#: the tensor that holds the JSON text
STATE = "weight.quant_state.bitsandbytes__nf4"

_LAYOUTS = {
    FOUR_BIT: Layout(grid="nf4", group_size=BLOCK, symmetric=True),
    EIGHT_BIT: Layout(grid="int8", group_size=-1, symmetric=True),
}
_SUFFIXES = {
    FOUR_BIT: (
        "weight",
        "weight.absmax",
        "weight.quant_map",
        "weight.nested_absmax",
        "weight.nested_quant_map",
        STATE,
    ),
    EIGHT_BIT: ("weight", "SCB", "weight_format"),
}
_REQUIRED = {FOUR_BIT: ("weight", STATE), EIGHT_BIT: ("weight",)}
_MARKERS = {FOUR_BIT: "weight.absmax", EIGHT_BIT: "SCB"}


@dataclass(frozen=True, kw_only=True)
class BitsAndBytesConfig:
    """The settings of a whole checkpoint; `version` is FOUR_BIT or EIGHT_BIT."""

    version: str

    @property
    def format(self) -> str:
        return f"bitsandbytes-{self.version}"

    @property
    def suffixes(self) -> tuple[str, ...]:
        return _SUFFIXES[self.version]

    @property
    def required(self) -> tuple[str, ...]:
        return _REQUIRED[self.version]

    @property
    def marker(self) -> str:
        return _MARKERS[self.version]

    def layer(self, module: str) -> Layout | None:  # noqa: ARG002  # one protocol for all formats
        """The layout of a module; the tensors, not the config, tell which are quantized."""
        return _LAYOUTS[self.version]

    def shape(self, layout: Layout, parts: Mapping[str, tuple[int, ...]]) -> tuple[int, int]:
        if len(parts["weight"]) != 2:
            raise RequestError("a quantized linear has a weight that is no matrix")
        rows, cols = parts["weight"]
        return rows, cols * 8 // layout.bits


def quantization_config(
    layers: Mapping[str, Layout],
    *,
    version: str | None,
    unquantized: Iterable[str] = (),
    head: str = "lm_head",
    names: EngineNames = OWN_NAMES,
    **_: object,
) -> JsonObject:
    """What config.json's `quantization_config` says.

    `layers` are all quantized linears by module name, `unquantized` the other linears, `head` the
    output head's name, `names` those that engines have for these modules. The outlier threshold of
    LLM.int8() is its default. Raises RequestError naming a linear with other settings than the
    layout's.
    """
    for name, layer in layers.items():
        if layer != _LAYOUTS[version or FOUR_BIT]:
            raise RequestError(
                f"{name}: bitsandbytes' {version} has one way to store a linear, symmetric and "
                f"{'in blocks of 64' if version == FOUR_BIT else 'with a scale for each row'}"
            )
    plain = [*unquantized, *([] if head in layers else [head])]
    config: JsonObject = {
        "quant_method": "bitsandbytes",
        "load_in_4bit": version == FOUR_BIT,
        "load_in_8bit": version == EIGHT_BIT,
        "llm_int8_skip_modules": [*names.all_of(plain)],
        "llm_int8_threshold": 6.0,
        "llm_int8_has_fp16_weight": False,
        "llm_int8_enable_fp32_cpu_offload": False,
    }
    if version == FOUR_BIT:
        config |= {
            "bnb_4bit_quant_type": "nf4",
            "bnb_4bit_compute_dtype": "bfloat16",
            "bnb_4bit_use_double_quant": False,
            "bnb_4bit_quant_storage": "uint8",
        }
    return config


def parse(stored: Mapping[str, Any]) -> BitsAndBytesConfig:
    """The settings in a `quantization_config`; RequestError where they cannot be read."""
    if stored.get("load_in_8bit") or stored.get("_load_in_8bit"):
        return BitsAndBytesConfig(version=EIGHT_BIT)
    if not (stored.get("load_in_4bit") or stored.get("_load_in_4bit")):
        raise RequestError("the bitsandbytes config says neither load_in_4bit nor load_in_8bit")
    kind = stored.get("bnb_4bit_quant_type", "fp4")
    if kind != "nf4":
        raise RequestError(f"bitsandbytes weights of the type {kind!r} cannot be read, only 'nf4'")
    storage = stored.get("bnb_4bit_quant_storage") or "uint8"
    if storage != "uint8":
        raise RequestError(f"4-bit weights that are stored as {storage} cannot be read")
    return BitsAndBytesConfig(version=FOUR_BIT)


def with_shapes(tensors: Mapping[str, TensorHeader]) -> dict[str, TensorHeader]:
    """The same headers with each packed 4-bit weight as [out, in / 2], which its bytes are, too.

    RequestError naming a weight where its JSON text says anything else of it.
    """
    found = dict(tensors)
    for name, header in tensors.items():
        if not name.endswith("." + STATE):
            continue
        weight = name.removesuffix(STATE) + "weight"
        if weight not in tensors:
            raise RequestError(f"the weights have a {name}, but no {weight}")
        with header.file.open("rb") as file:
            file.seek(header.start)
            text = file.read(header.nbytes)
        try:
            rows, cols = matrix_shape(text)
        except RequestError as error:
            raise RequestError(f"{weight}: {error.message}") from error
        packed = tensors[weight]
        if packed.dtype != "U8" or packed.nbytes != rows * cols // 2:
            raise RequestError(f"{weight} does not hold {rows} x {cols} codes of 4 bits")
        found[weight] = replace(packed, shape=(rows, cols // 2), stored_shape=packed.shape)
    return found


def matrix_shape(text: bytes) -> tuple[int, int]:
    """(outputs, inputs) that a weight's JSON text says; RequestError where it cannot be read."""
    try:
        state = json.loads(text)
        rows, cols = (int(width) for width in state["shape"])
        kind, block = state["quant_type"], state["blocksize"]
    except (ValueError, KeyError, TypeError) as error:
        raise RequestError("its quant_state is not the JSON that bitsandbytes writes") from error
    if kind != "nf4" or block != BLOCK:
        raise RequestError(f"{kind} in blocks of {block} cannot be read, only nf4 in {BLOCK}")
    if rows < 1 or cols < 1 or cols % BLOCK:
        raise RequestError(f"blocks of {BLOCK} do not divide its {cols} inputs: they cross rows")
    return rows, cols
