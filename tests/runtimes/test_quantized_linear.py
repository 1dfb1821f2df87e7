"""A quantized layer computes with exactly the decoded weight; the fast product stays near it."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from llmopt.grids import integer
from llmopt.runtimes.torch.int4 import int4_product
from llmopt.runtimes.torch.linear import (
    KernelSwitch,
    QuantizedLinear,
    pack_codes,
    unpack_codes,
)
from tests.runtimes.conftest import quantized


def weight(rows: int = 48, cols: int = 256) -> torch.Tensor:
    return torch.randn(rows, cols, generator=torch.Generator().manual_seed(1)) * 0.05


@pytest.mark.parametrize(("bits", "columns"), [(2, 16), (3, 32), (4, 32), (8, 64)])
def test_codes_survive_packing_in_the_expected_space(bits: int, columns: int) -> None:
    generator = torch.Generator().manual_seed(0)
    codes = torch.randint(2**bits, (5, 64), generator=generator, dtype=torch.uint8)
    packed = pack_codes(codes, bits)
    assert packed.shape == (5, columns)
    assert torch.equal(unpack_codes(packed, bits, 64), codes)


def test_codes_that_do_not_fill_bytes_are_kept_one_to_a_byte() -> None:
    codes = torch.arange(15, dtype=torch.uint8).reshape(3, 5)
    assert torch.equal(unpack_codes(pack_codes(codes, 4), 4, 5), codes)


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("act_order", [False, True])
@pytest.mark.parametrize("decode", ["each", "once"])
def test_forward_is_the_decoded_product_bit_for_bit(
    bits: int, act_order: bool, decode: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("llmopt.runtimes.torch.linear._ELEMENTS_AT_ONCE", 1000)
    tensor = quantized(weight(), bits, 32, symmetric=False, act_order=act_order)
    bias = torch.randn(48)
    layer = QuantizedLinear(tensor, bias, dtype=torch.float32, switch=KernelSwitch(), decode=decode)  # type: ignore[arg-type]
    x = torch.randn(2, 3, 256)
    exact = integer.decode(tensor.codes, tensor.params)
    assert torch.equal(layer(x), F.linear(x, exact, bias))
    again = layer.tensor()
    assert torch.equal(again.codes, tensor.codes)
    assert torch.equal(integer.decode(again.codes, again.params), exact)


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("group_size", [32, 64, 128, -1])
@pytest.mark.parametrize("act_order", [False, True])
def test_fast_product_is_near_the_exact_one(bits: int, group_size: int, act_order: bool) -> None:
    tensor = quantized(weight(), bits, group_size, symmetric=False, act_order=act_order)
    product = int4_product(tensor)
    assert product is not None
    x = torch.randn(4, 256, generator=torch.Generator().manual_seed(2))
    exact = x.double() @ integer.decode(tensor.codes, tensor.params).double().T
    error = (product(x).double() - exact).norm() / exact.norm()
    assert error < 6e-3


@pytest.mark.parametrize(
    ("rows", "cols", "group_size"), [(48, 256, 16), (40, 256, 32), (48, 96, -1)]
)
def test_shapes_that_the_kernel_cannot_take(rows: int, cols: int, group_size: int) -> None:
    tensor = quantized(weight(rows, cols), 4, group_size, symmetric=True, act_order=False)
    assert (int4_product(tensor) is None) == (cols != 96)  # 96 = 3 groups of 32 that repeat


def test_uneven_groups_of_act_order_have_no_fast_product() -> None:
    tensor = quantized(weight(), 4, 32, symmetric=True, act_order=True)
    assert tensor.params.group_index is not None
    tensor.params.group_index[0] = (tensor.params.group_index[0] + 1) % 8
    assert int4_product(tensor) is None


def test_fast_product_is_used_only_while_switched_on_and_for_few_rows() -> None:
    switch = KernelSwitch()
    tensor = quantized(weight(), 4, 32, symmetric=True, act_order=False)
    layer = QuantizedLinear(tensor, torch.ones(48), dtype=torch.float32, switch=switch)
    layer.prepare()
    x = torch.randn(8, 256)
    exact = layer(x)
    switch.fast = True
    fast = layer(x)
    assert not torch.equal(fast, exact)
    assert torch.allclose(fast, exact, atol=0.05)
    many = x.repeat(5, 1)
    assert torch.equal(layer(many)[:8], F.linear(many, layer._decode(), layer.bias)[:8])
