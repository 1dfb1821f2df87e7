"""The compressed-tensors layouts: bit by bit, what they hold, configs written and read.

`make compat` holds them to the package itself (tests/compat/test_compressed_tensors_package.py).
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from llmopt.errors import RequestError
from llmopt.formats.codec import decode
from llmopt.formats.compressed_tensors import Codec
from llmopt.formats.compressed_tensors_config import quantization_config
from llmopt.formats.layout import layout_of
from llmopt.formats.quantization import Quantization, read_quantization
from llmopt.grids.base import QuantizedTensor
from llmopt.model.layout import Layout
from tests.formats.test_gptq import BITS, make, same

CODEC = Codec()


def packed_naively(row: list[int], bits: int) -> list[int]:
    """One row as one long little-endian number in ceil(n * bits / 32) signed words."""
    number = sum(code << (bits * i) for i, code in enumerate(row))
    words = [(number >> (32 * i)) & 0xFFFFFFFF for i in range(-(-len(row) * bits // 32))]
    return [word - (1 << 32) if word >= 1 << 31 else word for word in words]


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("groups", [1, 2, 4])
@pytest.mark.parametrize("symmetric", [True, False])
def test_packed_integers(bits: int, groups: int, symmetric: bool) -> None:
    tensor = make(bits, groups=groups, symmetric=symmetric, rows=40)
    assert CODEC.accepts(tensor) is None
    stored = CODEC.pack(tensor)
    codes = [packed_naively(row, bits) for row in tensor.codes.tolist()]
    assert stored["weight_packed"].dtype == torch.int32
    assert stored["weight_packed"].tolist() == codes
    assert torch.equal(stored["weight_scale"].float(), tensor.params.scale)
    assert stored["weight_scale"].dtype == torch.float16
    assert stored["weight_shape"].tolist() == [40, 64]
    assert stored["weight_shape"].dtype == torch.int64
    zeros = [packed_naively(column, bits) for column in tensor.params.zero.T.tolist()]
    assert ("weight_zero_point" in stored) is not symmetric
    if not symmetric:
        assert stored["weight_zero_point"].T.tolist() == zeros
    same(CODEC.unpack(stored, layout_of(tensor)), tensor)


def test_act_order_keeps_its_index() -> None:
    tensor = make(4, act_order=True)
    stored = CODEC.pack(tensor)
    assert stored["weight_g_idx"].tolist() == tensor.params.group_index.tolist()
    same(CODEC.unpack(stored, layout_of(tensor)), tensor)


def test_an_index_in_order_is_dropped() -> None:
    stored = CODEC.pack(make(4)) | {"weight_g_idx": torch.arange(64) // 32}
    assert CODEC.unpack(stored, layout_of(make(4))).params.group_index is None


def rows_of_int8() -> QuantizedTensor:
    return replace(make(8, groups=1, symmetric=True), activations="int8")


def test_w8a8_integers_are_signed_bytes() -> None:
    tensor = rows_of_int8()
    assert CODEC.accepts(tensor) is None
    stored = CODEC.pack(tensor)
    assert set(stored) == {"weight", "weight_scale"}
    assert stored["weight"].dtype == torch.int8
    assert stored["weight"].tolist() == (tensor.codes.int() - 128).tolist()
    assert stored["weight_scale"].shape == (64, 1)
    back = CODEC.unpack(stored, layout_of(tensor))
    same(back, tensor)
    assert back.activations == "int8"


def fp8(rows: int = 40, cols: int = 64, *, activations: str | None = "fp8") -> QuantizedTensor:
    """Every finite float8 value but negative zero, and then some, with a scale a row."""
    draw = torch.Generator().manual_seed(8)
    patterns = torch.arange(256, dtype=torch.uint8).view(torch.float8_e4m3fn)
    finite = patterns[~patterns.float().isnan() & (patterns.view(torch.uint8) != 0x80)]
    drawn = finite.view(torch.uint8)[torch.randint(0, len(finite), (rows * cols,), generator=draw)]
    drawn[: len(finite)] = finite.view(torch.uint8)
    stored = {
        "weight": drawn.view(torch.float8_e4m3fn).reshape(rows, cols),
        "weight_scale": torch.rand(rows, 1, generator=draw) + 0.5,
    }
    layout = Layout(grid="fp8", group_size=-1, symmetric=True, activations=activations)
    return CODEC.unpack(stored, layout)


@pytest.mark.parametrize("activations", ["fp8", None])
def test_fp8_weights(activations: str | None) -> None:
    tensor = fp8(activations=activations)
    assert CODEC.accepts(tensor) is None
    assert not tensor.params.zero.any()
    stored = CODEC.pack(tensor)
    assert set(stored) == {"weight", "weight_scale"}
    assert stored["weight"].dtype == torch.float8_e4m3fn
    assert stored["weight_scale"].dtype == torch.float32
    assert torch.equal(decode(tensor), stored["weight"].float() * stored["weight_scale"])
    back = CODEC.unpack(stored, layout_of(tensor))
    same(back, tensor)
    assert back.activations == activations


def test_negative_zero_is_zero_and_nan_is_refused() -> None:
    layout = Layout(grid="fp8", group_size=-1, symmetric=True)
    bits = torch.tensor([[0x80, 0x00]], dtype=torch.uint8)
    stored = {"weight": bits.view(torch.float8_e4m3fn), "weight_scale": torch.ones(1, 1)}
    assert decode(CODEC.unpack(stored, layout)).tolist() == [[0.0, 0.0]]
    bits[0, 1] = 0xFF
    with pytest.raises(RequestError, match="not a number"):
        CODEC.unpack(stored, layout)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("shape", [(), (1,), (40,), (40, 1)])
def test_scales_of_other_tools(dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    """Per tensor or per channel, flat or not, in any float type."""
    tensor = fp8()
    scale = (torch.rand(shape) + 0.5).to(dtype)
    stored = CODEC.pack(tensor) | {"weight_scale": scale}
    back = CODEC.unpack(stored, layout_of(tensor))
    wide = scale.float().reshape(-1, 1).expand(40, 1)
    assert torch.equal(back.params.scale, wide)
    assert back.params.scale_dtype == str(dtype).removeprefix("torch.")
    assert torch.equal(decode(back), stored["weight"].float() * wide)
    assert CODEC.accepts(back) is None


@pytest.mark.parametrize(("rows", "cols"), [(256, 256), (192, 160), (40, 64)])
def test_fp8_in_blocks(rows: int, cols: int) -> None:
    tensor = fp8(rows, cols)
    blocks = torch.rand(-(-rows // 128), -(-cols // 128)) + 0.5
    layout = replace(layout_of(tensor), group_size=128, activations=None, blocks=True)
    stored = CODEC.pack(tensor) | {"weight_scale": blocks}
    back = CODEC.unpack(stored, layout)
    wide = blocks[torch.arange(rows) // 128][:, torch.arange(cols) // 128]
    assert torch.equal(decode(back), stored["weight"].float() * wide)
    assert CODEC.accepts(back) is None
    again = CODEC.pack(back)
    assert torch.equal(again["weight_scale"], blocks)
    assert torch.equal(again["weight"].view(torch.uint8), stored["weight"].view(torch.uint8))


def test_fp8_scales_that_are_in_no_blocks_are_not_taken_for_some() -> None:
    tensor = fp8(256, 256)
    scale = torch.rand(256, 2) + 0.5
    params = replace(tensor.params, scale=scale, zero=torch.zeros(256, 2), group_size=128)
    assert "one scale a row or block" in str(CODEC.accepts(replace(tensor, params=params)))
    index = torch.arange(256, dtype=torch.int32) % 2
    blocks = replace(params, scale=torch.ones(256, 2), group_index=index)
    assert "one scale a row or block" in str(CODEC.accepts(replace(tensor, params=blocks)))


def changed(tensor: QuantizedTensor, **params: Any) -> QuantizedTensor:
    return replace(tensor, params=replace(tensor.params, **params))


@pytest.mark.parametrize(
    ("tensor", "reason"),
    [
        (replace(make(4), grid="nf4"), "do not hold nf4"),
        (changed(make(4), scale=torch.full((64, 2), 0.1)), "not exact in float16"),
        (changed(make(4), scale=torch.full((64, 2), torch.inf)), "not finite"),
        (changed(make(4), zero=torch.full((64, 2), 16)), "outside 0 to 15"),
        (changed(make(4), symmetric=True), "symmetric tensor are 8"),
        (replace(make(8, symmetric=True), activations="int8"), "one scale a row"),
        (replace(make(8, groups=1), activations="int8"), "no zero points"),
    ],
)
def test_what_the_layout_cannot_hold_has_a_reason(tensor: QuantizedTensor, reason: str) -> None:
    assert reason in str(CODEC.accepts(tensor))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("weight_packed", torch.zeros(64, 7, dtype=torch.int32)),
        ("weight_shape", torch.tensor([64, 72])),
        ("weight_shape", torch.tensor([32, 64])),
        ("weight_scale", torch.ones(64, 3, dtype=torch.float16)),
        ("weight_scale", torch.ones(64, 2, dtype=torch.float64)),
        ("weight_zero_point", torch.zeros(8, 3, dtype=torch.int32)),
        ("weight_zero_point", None),
        ("weight_g_idx", torch.full((64,), 2)),
        ("weight_g_idx", torch.zeros(32)),
    ],
)
def test_parts_that_do_not_fit_are_refused(name: str, value: Tensor | None) -> None:
    stored = {**CODEC.pack(make(4)), name: value}
    with pytest.raises(RequestError):
        CODEC.unpack({k: v for k, v in stored.items() if v is not None}, layout_of(make(4)))


def test_a_weight_of_another_type_than_the_config_says_is_refused() -> None:
    stored = CODEC.pack(rows_of_int8())
    with pytest.raises(RequestError, match="not stored as fp8"):
        CODEC.unpack(stored, Layout(grid="fp8", group_size=-1, symmetric=True))


G64 = Layout(grid="int4", group_size=64, symmetric=True)
ROWS8 = Layout(grid="int8", group_size=-1, symmetric=False)
W8A8 = Layout(grid="int8", group_size=-1, symmetric=True, activations="int8")
FP8 = Layout(grid="fp8", group_size=-1, symmetric=True, activations="fp8")


def read(tmp_path: Path, config: dict[str, Any]) -> Quantization:
    found = read_quantization(tmp_path, {"quantization_config": json.loads(json.dumps(config))})
    assert found is not None
    return found


@pytest.mark.parametrize("layout", [G64, ROWS8, W8A8, FP8, replace(G64, desc_act=True)])
def test_one_scheme_is_read_back(tmp_path: Path, layout: Layout) -> None:
    stored = quantization_config({"m.0": layout, "m.1": layout}, unquantized=["m.2"])
    assert list(stored["config_groups"]) == ["group_0"]
    assert stored["config_groups"]["group_0"]["targets"] == ["Linear"]
    assert stored["ignore"] == ["m.2", "lm_head"]
    config = read(tmp_path, stored)
    assert config.format == "compressed-tensors"
    assert config.layer("m.0") == layout
    assert config.layer("m.2") is None
    assert config.layer("lm_head") is None


def test_the_sub_format_follows_from_grid_and_activations() -> None:
    formats = {
        layout: quantization_config({"m": layout})["format"] for layout in (G64, ROWS8, W8A8, FP8)
    }
    assert list(formats.values()) == [
        "pack-quantized",
        "pack-quantized",
        "int-quantized",
        "float-quantized",
    ]


def test_mixed_schemes_are_read_back(tmp_path: Path) -> None:
    layers = {"m.1.up": G64, "m.11.up": G64, "m.1.down": ROWS8, "m.11.down": FP8, "head": ROWS8}
    stored = quantization_config(layers, head="head")
    assert stored["format"] == "mixed-precision"
    groups = stored["config_groups"]
    assert [group["targets"] for group in groups.values()] == [
        ["m.1.down", "head"],
        ["m.11.down"],
        ["Linear"],
    ]
    assert groups["group_1"]["format"] == "float-quantized"
    assert stored["ignore"] == []
    config = read(tmp_path, stored)
    assert {name: config.layer(name) for name in layers} == layers


def test_bits_alone_are_one_format() -> None:
    stored = quantization_config({"m.1": G64, "m.2": ROWS8})
    assert stored["format"] == "pack-quantized"
    assert all("format" not in group for group in stored["config_groups"].values())


@pytest.mark.parametrize(
    ("layout", "message"),
    [
        (replace(W8A8, grid="int4"), "m: int8 activations go with int8 weights"),
        (replace(W8A8, symmetric=False), "m: int8 activations need a symmetric grid"),
        (replace(W8A8, group_size=64), "m: int-quantized weights have one scale a row"),
        (replace(FP8, group_size=64), "m: float-quantized weights have one scale a row"),
    ],
)
def test_schemes_that_no_engine_runs_are_refused(layout: Layout, message: str) -> None:
    with pytest.raises(RequestError, match=message):
        quantization_config({"m": layout})


def scheme(**weights: Any) -> dict[str, Any]:
    return {"targets": ["Linear"], "weights": {"num_bits": 8, "type": "int", **weights}}


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"format": "marlin-24"}, "format 'marlin-24' cannot be read"),
        ({"format": "nvfp4-pack-quantized"}, "format 'nvfp4-pack-quantized' cannot be read"),
        ({"config_groups": {"g": scheme() | {"format": "mxfp4-pack-quantized"}}}, "mxfp4"),
        ({"sparsity_config": {"format": "sparse-24-bitmask"}}, "sparse format"),
        ({"kv_cache_scheme": {"num_bits": 8}}, "KV cache"),
        ({"transform_config": {"config_groups": {"u": {}}}}, "transforms activations"),
        ({"quantization_status": "calibration"}, "not compressed"),
        ({"config_groups": {}}, "no config_groups"),
        ({"config_groups": {"g": {"targets": ["Linear"], "weights": {}}}}, "say num_bits"),
        ({"config_groups": {"g": scheme(num_bits=5)}}, r"5 bits \(int\)"),
        ({"config_groups": {"g": scheme(num_bits=4, type="float")}}, r"4 bits \(float\)"),
        ({"config_groups": {"g": scheme(strategy="tensor_group")}}, "'tensor_group'"),
        (
            {"config_groups": {"g": scheme(strategy="block", block_structure=[128, 64])}},
            "128 x 64",
        ),
        ({"config_groups": {"g": scheme() | {"output_activations": {"num_bits": 8}}}}, "outputs"),
        ({"config_groups": {"g": scheme() | {"targets": ["re:("]}}}, "not valid"),
    ],
)
def test_variants_that_cannot_be_read_are_told_apart(
    tmp_path: Path, config: dict[str, Any], message: str
) -> None:
    base = {"quant_method": "compressed-tensors", "config_groups": {"g": scheme()}}
    with pytest.raises(RequestError, match=message):
        read(tmp_path, base | config)


def inputs(**changes: Any) -> dict[str, Any]:
    usual = {"num_bits": 8, "type": "float", "symmetric": True, "strategy": "token"}
    return usual | {"dynamic": True} | changes


@pytest.mark.parametrize(
    ("weights", "activations", "layout"),
    [
        ({"type": "float", "strategy": "channel"}, inputs(), FP8),
        ({"type": "float", "strategy": "tensor"}, inputs(), FP8),
        # static activations are left as they are
        (
            {"type": "float", "strategy": "tensor"},
            inputs(dynamic=False, strategy="tensor"),
            replace(FP8, activations=None),
        ),
        (
            {"type": "float", "strategy": "block", "block_structure": [128, 128]},
            inputs(strategy="group", group_size=128),
            replace(FP8, group_size=128, activations=None, blocks=True),
        ),
        ({"strategy": "channel"}, inputs(type="int"), W8A8),
        ({"strategy": "channel", "symmetric": False}, None, ROWS8),
        (
            {"num_bits": 4, "strategy": "group", "group_size": 64, "actorder": "group"},
            None,
            replace(G64, desc_act=True),
        ),
        ({"num_bits": 4, "group_size": 64, "actorder": "weight"}, None, G64),
    ],
)
def test_schemes_of_other_tools_are_read(
    tmp_path: Path,
    weights: dict[str, Any],
    activations: dict[str, Any] | None,
    layout: Layout,
) -> None:
    group = scheme(**weights) | {"input_activations": activations}
    config = {
        "quant_method": "compressed-tensors",
        "format": "naive-quantized",
        "config_groups": {"group_0": group | {"targets": [r"re:.*layers\.\d+.*", "model.head"]}},
        "ignore": ["re:.*router$"],
        "sparsity_config": {"format": "dense"},
        "version": "0.20.0",
    }
    found = read(tmp_path, config)
    assert found.layer("model.layers.1.q") == layout
    assert found.layer("model.head") == layout
    assert found.layer("model.layers.1.router") is None
    assert found.layer("model.other") is None


def test_shapes_from_headers(tmp_path: Path) -> None:
    config = read(tmp_path, quantization_config({"m": G64}))
    for tensor in (make(3, groups=1), make(4), rows_of_int8()):
        parts = {name: tuple(part.shape) for name, part in CODEC.pack(tensor).items()}
        assert config.shape(layout_of(tensor), parts) == (64, 64)


BLOCKS = {"quant_method": "fp8", "fmt": "e4m3", "weight_block_size": [128, 128]}


def test_fp8_checkpoints_in_blocks(tmp_path: Path) -> None:
    from llmopt.formats.fp8 import Codec as Fp8Codec

    config = read(tmp_path, BLOCKS | {"activation_scheme": "dynamic"})
    assert (config.format, config.marker) == ("fp8", "weight_scale_inv")
    layout = config.layer("model.layers.0.q")
    assert layout == replace(FP8, group_size=128, activations=None, blocks=True)
    tensor, blocks = fp8(192, 160), torch.rand(2, 2) + 0.5
    weight = CODEC.pack(tensor)["weight"]
    back = Fp8Codec().unpack({"weight": weight, "weight_scale_inv": blocks}, layout)
    wide = blocks[torch.arange(192) // 128][:, torch.arange(160) // 128]
    assert torch.equal(decode(back), weight.float() * wide)
    assert back.params.group_index is not None
    assert "read, not written" in str(Fp8Codec().accepts(back))
    with pytest.raises(RequestError, match="blocks of 128"):
        Fp8Codec().unpack({"weight": weight, "weight_scale_inv": blocks[:, :1]}, layout)


def test_fp8_checkpoints_with_one_scale(tmp_path: Path) -> None:
    old = read(tmp_path, {"quant_method": "fp8", "ignored_layers": ["lm_head"]})
    assert old.marker == "weight_scale"
    new = read(tmp_path, {"quant_method": "fp8", "activation_scheme": "static"})
    assert new.marker == "weight_scale_inv"
    assert new.layer("m") == replace(FP8, activations=None)
    assert "activation_scale" in new.suffixes


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"fmt": "e5m2"}, "type 'e5m2'"),
        ({"weight_block_size": [1, 128]}, r"blocks of \[1, 128\]"),
        ({"weight_block_size": [0, 0]}, r"blocks of \[0, 0\]"),
        ({"kv_cache_scheme": "fp8"}, "KV cache"),
    ],
)
def test_fp8_variants_that_cannot_be_read(
    tmp_path: Path, config: dict[str, Any], message: str
) -> None:
    with pytest.raises(RequestError, match=message):
        read(tmp_path, BLOCKS | config)


def test_only_what_can_be_written_is_offered() -> None:
    from llmopt.recipe.schema import json_schema

    offered = json_schema()["$defs"]["QuantizeSettings"]["properties"]["format"]["enum"]
    assert "compressed-tensors" in offered
    assert "fp8" not in offered
