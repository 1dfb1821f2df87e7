"""bitsandbytes' two layouts: written out by hand, what they hold, what their configs say."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from llmopt.errors import RequestError
from llmopt.formats.bitsandbytes import Codec
from llmopt.formats.bitsandbytes_config import (
    EIGHT_BIT,
    FOUR_BIT,
    STATE,
    parse,
    quantization_config,
)
from llmopt.formats.codec import decode
from llmopt.formats.headers import read_headers
from llmopt.formats.layout import layout_of
from llmopt.grids import nf4
from llmopt.grids.base import AffineParams, QuantizedTensor
from llmopt.model.layout import Layout
from tests.formats.test_gptq import same

NF4, INT8 = Codec(FOUR_BIT), Codec(EIGHT_BIT)


def four(rows: int = 6, cols: int = 128) -> QuantizedTensor:
    draw = torch.Generator().manual_seed(4)
    codes = torch.randint(0, 16, (rows, cols), generator=draw).to(torch.uint8)
    scale = torch.rand(rows, cols // 64, generator=draw)
    params = AffineParams(
        bits=4, group_size=64, symmetric=True, scale=scale,
        zero=torch.zeros_like(scale, dtype=torch.int32), scale_dtype="float32",
    )  # fmt: skip
    return QuantizedTensor(grid="nf4", codes=codes, params=params)


def eight(rows: int = 6, cols: int = 40) -> QuantizedTensor:
    draw = torch.Generator().manual_seed(8)
    codes = torch.randint(0, 256, (rows, cols), generator=draw).to(torch.uint8)
    scale = torch.randn(rows, 1, generator=draw).half().float()
    params = AffineParams(
        bits=8, group_size=-1, symmetric=True, scale=scale,
        zero=torch.full((rows, 1), 128, dtype=torch.int32), scale_dtype="float32",
    )  # fmt: skip
    return QuantizedTensor(grid="int8", codes=codes, params=params)


def test_nf4_as_bitsandbytes_lays_it_out() -> None:
    tensor = four()
    assert NF4.accepts(tensor) is None
    stored = NF4.pack(tensor)
    codes = tensor.codes.flatten().tolist()
    pairs = [(a << 4) | b for a, b in zip(codes[::2], codes[1::2], strict=True)]
    assert stored["weight"].dtype == torch.uint8
    assert stored["weight"].tolist() == [[pair] for pair in pairs]
    assert torch.equal(stored["weight.absmax"], tensor.params.scale.flatten())
    assert torch.equal(stored["weight.quant_map"], nf4.levels)
    assert json.loads(bytes(stored[STATE].tolist())) == {
        "quant_type": "nf4", "blocksize": 64, "dtype": "bfloat16", "shape": [6, 128]
    }  # fmt: skip
    same(NF4.unpack(stored, layout_of(tensor)), tensor)


def test_quantized_scales_are_read() -> None:
    tensor = four(rows=160)  # 320 blocks: two scales for the scales
    stored = NF4.pack(tensor)
    draw = torch.Generator().manual_seed(0)
    codes = torch.randint(0, 256, (320,), generator=draw).to(torch.uint8)
    table, coarse, offset = torch.linspace(-1, 1, 256), torch.tensor([0.5, 0.25]), 0.125
    state = json.loads(bytes(stored[STATE].tolist()))
    state |= {"nested_blocksize": 256, "nested_dtype": "float32", "nested_offset": offset}
    stored |= {
        "weight.absmax": codes,
        "weight.nested_absmax": coarse,
        "weight.nested_quant_map": table,
        STATE: torch.tensor(list(json.dumps(state).encode()), dtype=torch.uint8),
    }
    found = NF4.unpack(stored, layout_of(tensor)).params.scale.flatten()
    expected = [
        float(table[code] * coarse[block // 256] + offset)
        for block, code in enumerate(codes.tolist())
    ]
    assert found.tolist() == expected
    for name, value in (
        ("weight.absmax", codes.float()),
        ("weight.nested_absmax", coarse[:1]),
        ("weight.nested_quant_map", table[:16]),
    ):
        with pytest.raises(RequestError):
            NF4.unpack({**stored, name: value}, layout_of(tensor))


def test_int8_as_bitsandbytes_lays_it_out() -> None:
    tensor = eight()
    assert INT8.accepts(tensor) is None
    stored = INT8.pack(tensor)
    assert torch.equal(stored["weight"].int(), tensor.codes.int() - 128)
    assert torch.equal(stored["SCB"], tensor.params.scale.flatten() * 127)
    assert stored["weight_format"].dtype == torch.uint8
    assert int(stored["weight_format"]) == 0
    back = INT8.unpack(stored, layout_of(tensor))
    same(back, tensor)
    value = stored["weight"].double() * stored["SCB"].double()[:, None] / 127
    assert torch.equal(decode(back).double(), value)


def test_int8_scales_of_any_file_come_back() -> None:
    draw = torch.Generator().manual_seed(1)
    rows = torch.rand(4096, generator=draw) * 3
    stored = {"weight": torch.zeros(4096, 8, dtype=torch.int8), "SCB": rows}
    layout = Layout(grid="int8", group_size=-1, symmetric=True)
    tensor = INT8.unpack(stored, layout)
    assert INT8.accepts(tensor) is None
    assert torch.equal(INT8.unpack(INT8.pack(tensor), layout).params.scale, tensor.params.scale)


def changed(tensor: QuantizedTensor, **params: Any) -> QuantizedTensor:
    return replace(tensor, params=replace(tensor.params, **params))


@pytest.mark.parametrize(
    ("codec", "tensor", "reason"),
    [
        (NF4, eight(), "hold nf4, not int8"),
        (INT8, four(), "hold int8, not nf4"),
        (NF4, changed(four(), group_index=torch.zeros(128)), "no group index"),
        (NF4, changed(four(), scale=torch.full((6, 2), torch.inf)), "not finite"),
        (NF4, changed(four(), scale=torch.ones(6, 1)), "blocks of 64"),
        (INT8, changed(eight(), scale=torch.ones(6, 2)), "one scale a row"),
        (INT8, changed(eight(), zero=torch.full((6, 1), 127)), "no zero points"),
    ],
)
def test_what_the_layouts_cannot_hold_has_a_reason(
    codec: Codec, tensor: QuantizedTensor, reason: str
) -> None:
    assert reason in str(codec.accepts(tensor))


def test_a_scale_that_no_127th_gives_is_not_accepted() -> None:
    scale = torch.rand(100_000, 1, generator=torch.Generator().manual_seed(0))
    tensor = QuantizedTensor(
        grid="int8", codes=torch.zeros(100_000, 1, dtype=torch.uint8),
        params=AffineParams(
            bits=8, group_size=-1, symmetric=True, scale=scale, zero=torch.full_like(scale, 128)
        ),
    )  # fmt: skip
    assert "not exact as a 127th" in str(INT8.accepts(tensor))


@pytest.mark.parametrize(
    ("codec", "tensor", "name", "value"),
    [
        (NF4, four(), "weight", torch.zeros(100, 1, dtype=torch.uint8)),
        (NF4, four(), "weight.absmax", torch.ones(11)),
        (NF4, four(), "weight.quant_map", torch.linspace(-1, 1, 16)),
        (NF4, four(), STATE, torch.tensor([123], dtype=torch.uint8)),
        (INT8, eight(), "SCB", torch.ones(5)),
        (INT8, eight(), "weight", torch.zeros(6, 40)),
        (INT8, eight(), "weight_format", torch.tensor(1, dtype=torch.uint8)),
    ],
)
def test_parts_that_do_not_fit_are_refused(
    codec: Codec, tensor: QuantizedTensor, name: str, value: Tensor
) -> None:
    stored = {**codec.pack(tensor), name: value}
    with pytest.raises(RequestError):
        codec.unpack(stored, layout_of(tensor))


@pytest.mark.parametrize(("version", "tensor"), [(FOUR_BIT, four()), (EIGHT_BIT, eight())])
def test_the_config_is_read_back(version: str, tensor: QuantizedTensor) -> None:
    layers = {"model.layers.0.mlp.up_proj": layout_of(tensor)}
    stored = quantization_config(layers, version=version, unquantized=["model.layers.1.x"])
    assert stored["quant_method"] == "bitsandbytes"
    assert stored["llm_int8_skip_modules"] == ["model.layers.1.x", "lm_head"]
    config = parse(json.loads(json.dumps(stored)))
    assert config.format == f"bitsandbytes-{version}"
    assert config.layer("model.layers.0.mlp.up_proj") == layout_of(tensor)
    other = replace(layout_of(tensor), group_size=32)
    with pytest.raises(RequestError, match=r"m: bitsandbytes' .* has one way"):
        quantization_config({"m": other}, version=version)


@pytest.mark.parametrize(
    ("stored", "message"),
    [
        ({}, "neither load_in_4bit nor load_in_8bit"),
        ({"load_in_4bit": True}, "type 'fp4' cannot be read"),
        (
            {
                "load_in_4bit": True,
                "bnb_4bit_quant_type": "nf4",
                "bnb_4bit_quant_storage": "bfloat16",
            },
            "stored as bfloat16",
        ),
    ],
)
def test_configs_that_cannot_be_read(stored: dict[str, Any], message: str) -> None:
    with pytest.raises(RequestError, match=message):
        parse(stored)


def saved(folder: Path, state: dict[str, Any], packed: Tensor) -> Path:
    text = torch.tensor(list(json.dumps(state).encode()), dtype=torch.uint8)
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({"model_type": "llama"}))
    save_file({"m.weight": packed, f"m.{STATE}": text}, folder / "model.safetensors")
    return folder


def test_headers_say_the_shape_of_the_matrix(tmp_path: Path) -> None:
    state = {"quant_type": "nf4", "blocksize": 64, "shape": [4, 64]}
    packed = torch.zeros(128, 1, dtype=torch.uint8)
    header = read_headers(saved(tmp_path / "ok", state, packed)).tensors["m.weight"]
    assert (header.shape, header.stored_shape) == ((4, 32), (128, 1))
    for index, (changes, message) in enumerate(
        [
            ({"shape": [4, 128]}, "does not hold 4 x 128 codes"),
            ({"shape": [8, 32]}, "do not divide its 32 inputs"),
            ({"blocksize": 128}, "nf4 in blocks of 128"),
            ({"shape": None}, "not the JSON"),
        ]
    ):
        with pytest.raises(RequestError, match=message):
            read_headers(saved(tmp_path / str(index), state | changes, packed))
