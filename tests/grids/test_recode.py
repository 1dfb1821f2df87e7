"""Other codes for the same values."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from llmopt.grids import integer
from llmopt.grids.base import AffineParams, GridOptions, QuantizedTensor
from llmopt.grids.recode import recode

ROWS, COLS = 6, 64


def tensor(bits: int, group_size: int = 32, *, low: int = 0, high: int | None = None,
           zero: int | None = None, indexed: bool = False) -> QuantizedTensor:  # fmt: skip
    """Random codes in [low, high], random zero points unless one is given."""
    draw = torch.Generator().manual_seed(bits)
    high, groups = 2**bits if high is None else high + 1, 1 if group_size == -1 else COLS // 32
    zeros = torch.randint(0, 2**bits, (ROWS, groups), generator=draw, dtype=torch.int32)
    index = torch.randperm(COLS, generator=draw).div(32, rounding_mode="floor").int()
    return QuantizedTensor(
        grid=f"int{bits}",
        codes=torch.randint(low, high, (ROWS, COLS), generator=draw, dtype=torch.uint8),
        params=AffineParams(
            bits=bits,
            group_size=group_size,
            symmetric=False,
            scale=torch.rand(ROWS, groups, generator=draw).half().float() + 0.5,
            zero=zeros if zero is None else torch.full_like(zeros, zero),
            group_index=index if indexed else None,
        ),
    )


def wanted(bits: int, group_size: int = 32, *, symmetric: bool = False, min_zero: int = 0,
           ) -> GridOptions:  # fmt: skip
    return GridOptions(grid=f"int{bits}", bits=bits, group_size=group_size, symmetric=symmetric,
                       min_zero=min_zero)  # fmt: skip


def same_values(found: QuantizedTensor | str, source: QuantizedTensor) -> QuantizedTensor:
    assert isinstance(found, QuantizedTensor), found
    assert found.codes.dtype == torch.uint8
    assert int(found.params.zero.max()) < 2**found.params.bits
    assert int(found.codes.max()) < 2**found.params.bits
    values = (integer.decode(each.codes, each.params) for each in (found, source))
    assert torch.equal(*values)
    return found


@pytest.mark.parametrize("indexed", [True, False])
@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_what_fits_stays_as_it_is(bits: int, indexed: bool) -> None:
    source = tensor(bits, indexed=indexed)
    found = same_values(recode(source, wanted(bits)), source)
    assert torch.equal(found.codes, source.codes)
    assert torch.equal(found.params.zero, source.params.zero)


@pytest.mark.parametrize("indexed", [True, False])
@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_a_zero_point_of_0_is_shifted_or_mirrored(bits: int, indexed: bool) -> None:
    full = tensor(bits, zero=0, indexed=indexed)
    full.codes[:, ::2] = 2**bits - 1  # the largest is in every group
    found = same_values(recode(full, wanted(bits, min_zero=1)), full)
    assert int(found.params.zero.min()) >= 1
    assert bool((found.params.scale < 0).all())
    room = tensor(bits, zero=0, high=2**bits - 2, indexed=indexed)
    found = same_values(recode(room, wanted(bits, min_zero=1)), room)
    assert torch.equal(found.params.scale, room.params.scale)


def test_more_bits_hold_fewer() -> None:
    for symmetric in (True, False):
        source = tensor(3, zero=4)
        found = same_values(recode(source, wanted(8, symmetric=symmetric)), source)
        assert int(found.params.zero.unique()) == (128 if symmetric else 4)


def test_fewer_bits_hold_more_only_where_the_integers_are_few() -> None:
    source = tensor(8, low=120, high=135, zero=128)
    found = same_values(recode(source, wanted(4, symmetric=True)), source)
    assert int(found.params.zero.unique()) == 8
    found = recode(tensor(8, low=100, high=135, zero=128), wanted(4))
    assert found == "integers from -28 to 7 do not fit 4 bits"
    found = recode(tensor(4, zero=3), wanted(4, symmetric=True))
    assert isinstance(found, str)
    assert "around 8" in found


def test_groups_are_split_and_merged() -> None:
    source = tensor(4)
    halves = same_values(recode(source, wanted(4, 16)), source)
    assert halves.params.scale.shape == (ROWS, 4)
    back = same_values(recode(halves, wanted(4)), source)
    assert torch.equal(back.params.scale, source.params.scale)
    row = tensor(4, -1)
    same_values(recode(row, wanted(4)), row)
    found = recode(source, wanted(4, -1))
    assert found == "groups of 32 have other parameters than their neighbours"
    assert isinstance(recode(tensor(4, indexed=True), wanted(4, 16)), str)


def test_levels_are_their_own_grid_alone() -> None:
    source = replace(tensor(8, -1, zero=0), grid="fp8")
    fp8 = GridOptions(grid="fp8", bits=8, group_size=32)
    found = recode(source, fp8)
    assert isinstance(found, QuantizedTensor)
    assert torch.equal(found.codes, source.codes)
    assert recode(source, wanted(8)) == "fp8 values are not int8 values"


def test_groups_inside_those_of_an_index_are_found() -> None:
    source = tensor(4)
    index = torch.arange(COLS, dtype=torch.int32) // 48  # the last group has 16 inputs
    ragged = replace(source, params=replace(source.params, group_size=48, group_index=index))
    found = same_values(recode(ragged, wanted(4, 16)), ragged)
    assert found.params.group_index is None
    assert found.params.scale.shape == (ROWS, 4)
    assert isinstance(recode(ragged, wanted(4, 32)), str)
