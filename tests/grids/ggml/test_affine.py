"""Integers with scales and zero points in ggml's blocks, and back, bit for bit."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from llmopt.grids import ggml, integer
from llmopt.grids.base import AffineParams, GridOptions, QuantizedTensor
from llmopt.grids.ggml import BlockTensor
from llmopt.grids.ggml.affine import from_blocks, to_blocks


def integers(bits: int, *, symmetric: bool, group_size: int = 32, seed: int = 0) -> QuantizedTensor:
    w = torch.randn(6, 128, generator=torch.Generator().manual_seed(seed))
    options = GridOptions(
        grid=f"int{bits}", bits=bits, group_size=group_size, symmetric=symmetric, scale_search="mse"
    )
    params = integer.fit(w, options)
    return QuantizedTensor(grid=options.grid, codes=integer.encode(w, params), params=params)


@pytest.mark.parametrize(
    ("bits", "symmetric", "group_size", "type_id"),
    [
        (4, True, 32, "Q4_0"), (3, True, 64, "Q4_0"), (2, True, 128, "Q4_0"), (4, True, -1, "Q4_0"),
        (8, True, 32, "Q8_0"), (8, True, -1, "Q8_0"), (4, True, 32, "Q5_0"), (4, True, 32, "Q8_0"),
    ],
)  # fmt: skip
def test_symmetric_integers_keep_their_values_and_come_back(
    bits: int, symmetric: bool, group_size: int, type_id: str
) -> None:
    source = integers(bits, symmetric=symmetric, group_size=group_size)
    blocks = to_blocks(source, type_id)
    assert isinstance(blocks, BlockTensor), blocks
    assert torch.equal(
        ggml.decode(type_id, blocks.data), integer.decode(source.codes, source.params)
    )
    back = from_blocks(blocks)
    assert isinstance(back, QuantizedTensor), back
    assert torch.equal(
        integer.decode(back.codes, back.params), integer.decode(source.codes, source.params)
    )


def test_the_integers_themselves_do_not_change() -> None:
    source = integers(4, symmetric=True)
    blocks = to_blocks(source, "Q4_0")
    assert isinstance(blocks, BlockTensor)
    nibbles = blocks.data.view(-1, 18)[:, 2:]
    codes = torch.cat([nibbles & 15, nibbles >> 4], 1).view(6, 128)
    assert torch.equal(codes, source.codes)


def with_zero(scale: float, zero: int) -> QuantizedTensor:
    codes = torch.arange(16, dtype=torch.uint8).repeat(2).view(1, 32)
    params = AffineParams(
        bits=4,
        group_size=32,
        symmetric=False,
        scale=torch.full((1, 1), scale, dtype=torch.float16).float(),
        zero=torch.full((1, 1), zero, dtype=torch.int32),
    )
    return QuantizedTensor(grid="int4", codes=codes, params=params)


def test_a_minimum_has_to_be_exact_in_float16() -> None:
    held = to_blocks(with_zero(0.5, 7), "Q4_1")
    assert isinstance(held, BlockTensor)
    back = from_blocks(held)
    assert isinstance(back, QuantizedTensor)
    assert torch.equal(back.codes, with_zero(0.5, 7).codes)
    # 11 bits of scale times 7 take 14: more than float16 has
    assert to_blocks(with_zero(0.3333, 7), "Q4_1") == (
        "a scale or a minimum is not exact in float16"
    )


@pytest.mark.parametrize(("minimum", "zero"), [(1.0, -2), (-10.0, 20)])
def test_a_zero_point_has_to_fit_the_bits(minimum: float, zero: int) -> None:
    head = torch.tensor([0.5, minimum], dtype=torch.float16).view(torch.uint8)
    data = torch.cat([head, torch.zeros(16, dtype=torch.uint8)])[None]
    found = from_blocks(BlockTensor(grid="Q4_1", data=data))
    assert found == f"a zero point of {zero} does not fit 4 bits"


def test_inputs_out_of_order_are_said_to_be() -> None:
    source = integers(4, symmetric=True)
    shuffled = replace(source.params, group_index=torch.arange(128, dtype=torch.int32) % 4)
    found = to_blocks(replace(source, params=shuffled), "Q4_0")
    assert found == "its inputs are out of order"


def test_codes_may_lie_in_memory_in_any_order() -> None:
    source = integers(4, symmetric=True)
    turned = replace(source, codes=source.codes.T.contiguous().T)
    held, same = to_blocks(source, "Q4_0"), to_blocks(turned, "Q4_0")
    assert isinstance(held, BlockTensor)
    assert isinstance(same, BlockTensor)
    assert torch.equal(held.data, same.data)


def test_what_a_type_cannot_hold_is_said() -> None:
    assert "do not fit" in str(to_blocks(integers(8, symmetric=True), "Q4_0"))
    assert "no integers" in str(from_blocks(BlockTensor(grid="Q4_K", data=torch.zeros(1, 144))))
    assert "does not hold integers" in str(to_blocks(integers(4, symmetric=True), "Q4_K"))


def test_empty_blocks_and_constants_come_back() -> None:
    w = torch.zeros(2, 64)
    w[1] = 0.25
    for type_id in ("Q4_0", "Q4_1", "Q8_0"):
        data = ggml.encode(type_id, w, None, "reference")
        back = from_blocks(BlockTensor(grid=type_id, data=data))
        assert isinstance(back, QuantizedTensor), (type_id, back)
        assert torch.equal(integer.decode(back.codes, back.params), ggml.decode(type_id, data))
