"""The AWQ layout: against AutoAWQ's own loops, what it holds, what its config says."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from llmopt.errors import RequestError
from llmopt.formats.awq import Codec
from llmopt.formats.awq_config import quantization_config
from llmopt.formats.layout import layout_of
from llmopt.formats.quantization import Quantization, read_quantization
from llmopt.model.layout import Layout
from tests.formats.test_gptq import make, same

CODEC = Codec()


def packed_naively(values: Tensor) -> list[list[int]]:
    """[n, outputs] with the output of each nibble written out, as AutoAWQ's from_linear does."""
    words = []
    for row in values.tolist():
        words.append([])
        for start in range(0, len(row), 8):
            word = 0
            for nibble, output in enumerate((0, 2, 4, 6, 1, 3, 5, 7)):
                word |= row[start + output] << (4 * nibble)
            words[-1].append(word - (1 << 32) if word >= 1 << 31 else word)
    return words


@pytest.mark.parametrize("groups", [1, 2, 4])
@pytest.mark.parametrize("symmetric", [True, False])
def test_what_is_packed_comes_back(groups: int, symmetric: bool) -> None:
    tensor = make(4, groups=groups, symmetric=symmetric, rows=40)
    assert CODEC.accepts(tensor) is None
    stored = CODEC.pack(tensor)
    assert {name: (t.dtype, tuple(t.shape)) for name, t in stored.items()} == {
        "qweight": (torch.int32, (64, 5)),
        "qzeros": (torch.int32, (groups, 5)),
        "scales": (torch.float16, (groups, 40)),
    }
    assert stored["qweight"].tolist() == packed_naively(tensor.codes.T)
    assert stored["qzeros"].tolist() == packed_naively(tensor.params.zero.T)
    same(CODEC.unpack(stored, layout_of(tensor)), tensor)


def test_symmetric_zero_points_and_negative_scales_are_stored() -> None:
    tensor = make(4, symmetric=True)
    assert bool((tensor.params.scale < 0).any())
    stored = CODEC.pack(tensor)
    assert set(stored["qzeros"].flatten().tolist()) == {0x88888888 - (1 << 32)}
    assert torch.equal(stored["scales"].T.float(), tensor.params.scale)


def changed(**params: Any) -> Any:
    tensor = make(4)
    return replace(tensor, params=replace(tensor.params, **params))


@pytest.mark.parametrize(
    ("tensor", "reason"),
    [
        (make(8), "not int8"),
        (make(4, rows=36), "does not divide 36"),
        (make(4, act_order=True), "no group index"),
        (replace(make(4), activations="int8"), "activations are int8"),
        (changed(scale=torch.full((64, 2), 0.1)), "not exact in float16"),
        (changed(scale=torch.full((64, 2), torch.nan)), "not finite"),
        (changed(zero=torch.full((64, 2), -1)), "outside 0 to 15"),
        (changed(zero=torch.full((64, 2), 16)), "outside 0 to 15"),
    ],
)
def test_what_the_layout_cannot_hold_has_a_reason(tensor: Any, reason: str) -> None:
    assert reason in str(CODEC.accepts(tensor))


def test_a_zero_point_of_zero_is_held() -> None:
    tensor = changed(zero=torch.zeros(64, 2, dtype=torch.int32))
    assert CODEC.accepts(tensor) is None
    same(CODEC.unpack(CODEC.pack(tensor), layout_of(tensor)), tensor)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("scales", torch.ones(3, 64, dtype=torch.float16)),
        ("scales", torch.ones(2, 32, dtype=torch.float16)),
        ("qzeros", torch.zeros(1, 8, dtype=torch.int32)),
        ("qweight", torch.zeros(60, 8, dtype=torch.int32)),
    ],
)
def test_parts_that_do_not_fit_are_refused(name: str, value: Tensor) -> None:
    stored = {**CODEC.pack(make(4)), name: value}
    with pytest.raises(RequestError):
        CODEC.unpack(stored, layout_of(make(4)))


G64 = Layout(grid="int4", group_size=64, symmetric=False)


def read(tmp_path: Path, config: dict[str, Any]) -> Quantization:
    found = read_quantization(tmp_path, {"quantization_config": json.loads(json.dumps(config))})
    assert found is not None
    return found


def test_the_config_is_read_back(tmp_path: Path) -> None:
    layers = {"model.layers.0.mlp.up_proj": G64, "model.layers.11.mlp.down_proj": G64}
    stored = quantization_config(layers, unquantized=["model.layers.1.mlp.down_proj"])
    assert (stored["quant_method"], stored["version"]) == ("awq", "gemm")
    assert (stored["bits"], stored["group_size"], stored["zero_point"]) == (4, 64, True)
    config = read(tmp_path, stored)
    assert config.format == "awq"
    assert config.layer("model.layers.11.mlp.down_proj") == G64
    assert config.layer("model.layers.1.mlp.down_proj") is None
    assert config.shape(G64, {"qweight": (64, 5)}) == (40, 64)


def test_symmetric_and_asymmetric_linears_share_a_config() -> None:
    layers = {"a": G64, "b": replace(G64, symmetric=True)}
    assert quantization_config(layers)["zero_point"] is True


def test_two_group_sizes_are_refused_with_the_name() -> None:
    with pytest.raises(RequestError, match=r"for the whole model: m\.2 has groups"):
        quantization_config({"m.0": G64, "m.1": G64, "m.2": replace(G64, group_size=32)})


@pytest.mark.parametrize(
    ("skipped", "layer"),
    [("m.0.mlp.gate", "m.0.mlp.gate_proj"), ("m.0.mlp", "m.0.mlp.up"), ("0.q", "m.10.q")],
)
def test_a_skipped_name_that_is_part_of_another_is_refused(skipped: str, layer: str) -> None:
    with pytest.raises(RequestError, match=f"{skipped} unquantized without {layer}"):
        quantization_config({layer: G64}, unquantized=[skipped])


@pytest.mark.parametrize(
    ("stored", "message"),
    [
        ({"version": "gemv"}, "version 'gemv' cannot be read"),
        ({"checkpoint_format": "marlin"}, "version 'marlin' cannot be read"),
        ({"zero_point": False}, "without zero points"),
        ({"backend": "llm-awq"}, "llm-awq"),
        ({"bits": 8}, "says 8 bits"),
        ({"bits": None}, "does not say bits"),
        ({"group_size": 7}, "group size 7"),
        ({"modules_to_not_convert": "visual"}, "not a list"),
        ({"dynamic": {"+:.*down": {"group_size": 32}}}, "single modules"),
    ],
)
def test_variants_that_cannot_be_read_are_told_apart(
    tmp_path: Path, stored: dict[str, Any], message: str
) -> None:
    with pytest.raises(RequestError, match=message):
        read(tmp_path, {"quant_method": "awq", "bits": 4, "group_size": 64, **stored})


@pytest.mark.parametrize(
    "stored",
    [
        # AutoAWQ
        {"zero_point": True, "group_size": 64, "bits": 4, "version": "gemm",
         "modules_to_not_convert": ["visual"]},
        # AutoAWQ's own names, upper case
        {"zero_point": True, "q_group_size": 64, "w_bit": 4, "version": "GEMM"},
        # GPTQModel
        {"bits": 4, "group_size": 64, "checkpoint_format": "gemm", "format": "gemm", "sym": True,
         "desc_act": False, "dynamic": {"-:visual": {}}, "pack_dtype": "int32"},
    ],
)  # fmt: skip
def test_configs_of_other_tools_are_read(tmp_path: Path, stored: dict[str, Any]) -> None:
    assert read(tmp_path, {"quant_method": "awq", **stored}).layer("model.layers.0.q") == G64


def test_transformers_takes_the_config() -> None:
    from transformers.utils.quantization_config import AwqConfig

    stored = quantization_config({"m.0": G64}, unquantized=["m.1"])
    parsed = AwqConfig.from_dict(dict(stored))
    assert (parsed.bits, parsed.group_size, parsed.zero_point) == (4, 64, True)
    assert parsed.format == "gemm"
    assert parsed.modules_to_not_convert == ["m.1"]
