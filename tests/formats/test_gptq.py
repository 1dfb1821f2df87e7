"""The GPTQ layout: packing against a bit-by-bit reference, what it holds, what its config says."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from llmopt.errors import RequestError
from llmopt.formats.bits import pack_bits, unpack_bits
from llmopt.formats.gptq import accepts, pack, quantization_config, unpack
from llmopt.formats.layout import layout_of
from llmopt.formats.quantization import read_quantization
from llmopt.grids.base import AffineParams, QuantizedTensor
from llmopt.model.layout import Layout
from llmopt.specs.formats import GPTQ_V1, GPTQ_V2

BITS = (2, 3, 4, 8)


def packed_naively(row: list[int], bits: int) -> list[int]:
    """One row of codes as one long little-endian number, cut into signed 32-bit words."""
    number = sum(code << (bits * i) for i, code in enumerate(row))
    words = [(number >> (32 * i)) & 0xFFFFFFFF for i in range(len(row) * bits // 32)]
    return [word - (1 << 32) if word >= 1 << 31 else word for word in words]


@settings(max_examples=40, deadline=None)
@given(bits=st.sampled_from(BITS), lanes=st.integers(1, 3), data=st.data())
def test_packing_is_a_stream_of_bits(bits: int, lanes: int, data: st.DataObject) -> None:
    code = st.integers(0, 2**bits - 1)
    rows = data.draw(st.lists(st.lists(code, min_size=32 * lanes, max_size=32 * lanes), min_size=1))
    codes = torch.tensor(rows, dtype=torch.uint8)
    words = pack_bits(codes, bits)
    assert words.dtype == torch.int32
    assert words.tolist() == [packed_naively(row, bits) for row in rows]
    assert torch.equal(unpack_bits(words, bits), codes)


def make(
    bits: int, *, groups: int = 2, symmetric: bool = False, act_order: bool = False, rows: int = 64
) -> QuantizedTensor:
    """Random codes and parameters of a [rows, 64] linear."""
    draw = torch.Generator().manual_seed(bits)
    cols, top = 64, 2**bits
    codes = torch.randint(0, top, (rows, cols), generator=draw).to(torch.uint8)
    zero = torch.randint(1, top, (rows, groups), generator=draw).to(torch.int32)
    if symmetric:
        zero.fill_(top // 2)
    index = torch.randperm(cols, generator=draw).to(torch.int32) // (cols // groups)
    scale = torch.randn(rows, groups, generator=draw).half().float()
    params = AffineParams(
        bits=bits,
        group_size=cols // groups if groups > 1 else -1,
        symmetric=symmetric,
        scale=scale,
        zero=zero,
        group_index=index if act_order else None,
    )
    return QuantizedTensor(grid=f"int{bits}", codes=codes, params=params)


def same(ours: QuantizedTensor, theirs: QuantizedTensor) -> None:
    assert torch.equal(ours.codes, theirs.codes)
    assert ours.codes.dtype == theirs.codes.dtype
    for name in ("scale", "zero"):
        a, b = getattr(ours.params, name), getattr(theirs.params, name)
        assert a.dtype == b.dtype
        assert torch.equal(a, b), name
    index, other = ours.params.group_index, theirs.params.group_index
    assert (index is None) == (other is None)
    assert index is None or torch.equal(index, other)
    empty = {"scale": None, "zero": None, "group_index": None}
    assert replace(ours.params, **empty) == replace(theirs.params, **empty)


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("version", [GPTQ_V1, GPTQ_V2])
@pytest.mark.parametrize("groups", [1, 2, 4])
@pytest.mark.parametrize("act_order", [False, True])
def test_what_is_packed_comes_back(bits: int, version: str, groups: int, act_order: bool) -> None:
    tensor = make(bits, groups=groups, act_order=act_order and groups > 1)
    assert accepts(tensor, version) is None
    stored = pack(tensor, version)
    assert {name: (t.dtype, tuple(t.shape)) for name, t in stored.items()} == {
        "qweight": (torch.int32, (64 * bits // 32, 64)),
        "qzeros": (torch.int32, (groups, 64 * bits // 32)),
        "scales": (torch.float16, (groups, 64)),
        "g_idx": (torch.int32, (64,)),
    }
    same(unpack(stored, layout_of(tensor), version), tensor)


def test_version_one_stores_zero_less_one() -> None:
    tensor = make(4, symmetric=True)
    assert set(pack(tensor, GPTQ_V1)["qzeros"].flatten().tolist()) == {0x77777777}
    assert set(pack(tensor, GPTQ_V2)["qzeros"].flatten().tolist()) == {0x88888888 - (1 << 32)}


def test_values_lie_where_autogptq_expects_them() -> None:
    """Column i of 4-bit codes is nibble i % 8 of word i // 8, and outputs are not packed."""
    tensor = make(4)
    stored = pack(tensor, GPTQ_V2)
    for row, column in ((0, 0), (5, 9), (63, 63)):
        word = int(stored["qweight"][column // 8, row]) & 0xFFFFFFFF
        assert (word >> (4 * (column % 8))) & 15 == int(tensor.codes[row, column])
        zeros = int(stored["qzeros"][column // 32, row // 8]) & 0xFFFFFFFF
        assert (zeros >> (4 * (row % 8))) & 15 == int(tensor.params.zero[row, column // 32])
        assert stored["scales"][column // 32, row] == tensor.params.scale[row, column // 32]


def test_a_zero_of_zero_wraps_around_in_version_one_as_autogptq_reads_it() -> None:
    stored = pack(make(4), GPTQ_V2)
    stored["qzeros"] = torch.full_like(stored["qzeros"], -1)  # every stored value is 15
    layout = Layout(grid="int4", group_size=32, symmetric=False)
    assert int(unpack(stored, layout, GPTQ_V1).params.zero.max()) == 0


def changed(**params: Any) -> QuantizedTensor:
    tensor = make(4)
    return replace(tensor, params=replace(tensor.params, **params))


@pytest.mark.parametrize(
    ("tensor", "version", "reason"),
    [
        (changed(zero=torch.zeros(64, 2, dtype=torch.int32)), GPTQ_V1, "a zero point is 0"),
        (changed(zero=torch.full((64, 2), 16, dtype=torch.int32)), GPTQ_V2, "outside 0 to 15"),
        (changed(scale=torch.full((64, 2), 0.1)), GPTQ_V1, "not exact in float16"),
        (changed(scale=torch.full((64, 2), torch.inf)), GPTQ_V1, "not finite"),
        (changed(scale=torch.full((64, 2), torch.nan)), GPTQ_V1, "not"),
        (make(4, rows=40), GPTQ_V1, "does not divide 40 x 64"),
        (replace(make(4), grid="nf4"), GPTQ_V1, "not nf4"),
    ],
)
def test_what_the_layout_cannot_hold_has_a_reason(
    tensor: QuantizedTensor, version: str, reason: str
) -> None:
    assert reason in str(accepts(tensor, version))


def test_version_two_holds_a_zero_of_zero() -> None:
    assert accepts(changed(zero=torch.zeros(64, 2, dtype=torch.int32)), GPTQ_V2) is None


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("scales", torch.ones(3, 64, dtype=torch.float16)),
        ("qzeros", torch.zeros(2, 4, dtype=torch.int32)),
        ("qweight", torch.zeros(7, 64, dtype=torch.int32)),
        ("g_idx", torch.full((64,), 2, dtype=torch.int32)),
        ("g_idx", torch.full((64,), -1, dtype=torch.int32)),
        ("g_idx", torch.zeros(32, dtype=torch.int32)),
    ],
)
def test_parts_that_do_not_fit_are_refused(name: str, value: torch.Tensor) -> None:
    stored = {**pack(make(4), GPTQ_V1), name: value}
    with pytest.raises(RequestError):
        unpack(stored, layout_of(make(4)), GPTQ_V1)


INT4 = Layout(grid="int4", group_size=32, symmetric=True)
INT8 = Layout(grid="int8", group_size=-1, symmetric=True)


def config_of(**changes: Any) -> dict[str, Any]:
    layers = {"m.0.q": INT4, "m.0.down": INT8, "m.1.q": INT4, "m.10.q": INT4}
    return quantization_config(
        layers, version=GPTQ_V1, unquantized=["m.1.down"], damping=0.05, **changes
    )


def test_the_config_says_what_loaders_read() -> None:
    config = config_of()
    assert config["quant_method"] == "gptq"
    assert config["checkpoint_format"] == "gptq"
    assert (config["bits"], config["group_size"]) == (4, 32)
    assert (config["sym"], config["desc_act"], config["lm_head"]) == (True, False, False)
    assert (config["damp_percent"], config["pack_dtype"]) == (0.05, "int32")
    assert config["dynamic"] == {
        r"-:^m\.1\.down$": {},
        r"+:^m\.0\.down$": {"bits": 8, "group_size": -1, "desc_act": False, "sym": True},
    }
    assert "dynamic" not in quantization_config({"m": INT4}, version=GPTQ_V2)
    assert json.loads(json.dumps(config)) == config


def test_transformers_takes_the_config() -> None:
    from transformers import GPTQConfig

    for config in (config_of(), quantization_config({"m": INT8}, version=GPTQ_V2)):
        parsed = GPTQConfig.from_dict(dict(config))
        assert (parsed.bits, parsed.group_size) == (config["bits"], config["group_size"])
        assert parsed.format == config["checkpoint_format"]


@pytest.mark.parametrize("place", ["config.json", "quantize_config.json"])
def test_the_config_is_read_back(tmp_path: Path, place: str) -> None:
    if place == "config.json":
        model = {"quantization_config": config_of()}
    else:
        model = {}
        (tmp_path / place).write_text(json.dumps(config_of()))
    config = read_quantization(tmp_path, model)
    assert config is not None
    assert config.format == GPTQ_V1
    assert config.layer("m.0.q") == INT4
    assert config.layer("m.0.down") == INT8
    assert config.layer("m.1.down") is None
    assert config.layer("m.10.down") == INT4


def test_a_plain_model_has_no_gptq_config(tmp_path: Path) -> None:
    assert read_quantization(tmp_path, {"model_type": "llama"}) is None


@pytest.mark.parametrize(
    ("stored", "message"),
    [
        ({"quant_method": "quip", "bits": 4}, "quantized with quip"),
        ({"quant_method": "gptq", "bits": 4}, "does not say group_size"),
        ({"bits": 5, "group_size": 32}, "says 5 bits"),
        ({"bits": "many", "group_size": 32}, "not valid"),
        ({"bits": 4, "group_size": 32, "dynamic": {"+:(": {}}}, "not valid"),
        ({"bits": 4, "group_size": 32, "checkpoint_format": "marlin"}, "'marlin' cannot be read"),
        ([], "not an object"),
    ],
)
def test_a_config_that_makes_no_sense_is_refused(
    tmp_path: Path, stored: object, message: str
) -> None:
    with pytest.raises(RequestError, match=message):
        read_quantization(tmp_path, {"quantization_config": stored})
