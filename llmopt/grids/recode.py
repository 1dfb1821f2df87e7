"""The same values in another layout, without rounding: other codes, zero points, bits or groups."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from llmopt.grids.affine import group_length
from llmopt.grids.base import AffineParams, GridOptions, QuantizedTensor

_INTEGERS = "int"


def recode(tensor: QuantizedTensor, wanted: GridOptions) -> QuantizedTensor | str:
    """`tensor` as `wanted` asks for it, decoding to equal values; or why that cannot be.

    Groups are split, and merged where their parameters are equal. An integer v = code - zero
    keeps its code where it can; else zero points move, as far as all integers of their group
    still fit, and where no zero point serves, the group is mirrored: scale * v = -scale * -v.
    Inputs whose groups are not in order stay in their groups, unless whole groups lie inside them.
    """
    integers = tensor.grid.startswith(_INTEGERS) and wanted.grid.startswith(_INTEGERS)
    if tensor.grid != wanted.grid and not integers:
        return f"{tensor.grid} values are not {wanted.grid} values"
    params = _regrouped(tensor.params, tensor.codes.shape[1], wanted.group_size)
    if isinstance(params, str):
        return params
    if not integers:
        return replace(tensor, params=replace(params, symmetric=wanted.symmetric))
    return _shifted(replace(tensor, params=params), wanted)


def _regrouped(params: AffineParams, cols: int, group_size: int) -> AffineParams | str:
    if params.group_size == group_size:
        return params
    if params.group_index is not None:
        owners = params.group_index.to(torch.int64).reshape(-1, group_length(cols, group_size))
        if not torch.equal(owners, owners[:, :1].expand_as(owners)):
            return f"inputs out of order are in groups of {params.group_size}, not {group_size}"
        scale, zero = (x[:, owners[:, 0]] for x in (params.scale, params.zero))
        return replace(params, scale=scale, zero=zero, group_size=group_size, group_index=None)
    present, groups = params.scale.shape[1], cols // group_length(cols, group_size)
    scale, zero = params.scale, params.zero
    if groups % present == 0:
        scale, zero = (x.repeat_interleave(groups // present, 1) for x in (scale, zero))
    elif present % groups == 0:
        merged = [x.reshape(len(x), groups, -1) for x in (scale, zero)]
        if not all(torch.equal(x, x[..., :1].expand_as(x)) for x in merged):
            return f"groups of {cols // present} have other parameters than their neighbours"
        scale, zero = (x[..., 0].contiguous() for x in merged)
    else:
        return f"groups of {cols // present} are not parts of groups of {group_size}"
    return replace(params, scale=scale, zero=zero, group_size=group_size)


def _shifted(tensor: QuantizedTensor, wanted: GridOptions) -> QuantizedTensor | str:
    params, top = tensor.params, 2**wanted.bits - 1
    index = _group_of_each(params, tensor.codes.shape[1])
    integers = tensor.codes.to(torch.int16) - params.zero.to(torch.int16)[:, index]
    smallest, largest = _extremes(integers, params)
    middle = 2 ** (wanted.bits - 1)
    first, last = (middle, middle) if wanted.symmetric else (wanted.min_zero, top)
    low, high = (-smallest).clamp(min=first), (top - largest).clamp(max=last)
    low_mirrored, high_mirrored = largest.clamp(min=first), (top + smallest).clamp(max=last)
    mirrored = (low > high) & (low_mirrored <= high_mirrored)
    if bool(((low > high) & ~mirrored).any()):
        around = f" around {middle}" if wanted.symmetric else ""
        span = f"{int(smallest.min())} to {int(largest.max())}"
        return f"integers from {span} do not fit {wanted.bits} bits{around}"
    low, high = torch.where(mirrored, low_mirrored, low), torch.where(mirrored, high_mirrored, high)
    start = torch.where(mirrored, 2**params.bits - 1 - params.zero, params.zero)
    zero = torch.minimum(torch.maximum(start, low), high).to(torch.int32)
    sign = torch.where(mirrored, -1, 1)
    codes = integers * sign.to(torch.int16)[:, index] + zero.to(torch.int16)[:, index]
    return QuantizedTensor(
        grid=wanted.grid,
        codes=codes.to(torch.uint8),
        params=replace(
            params,
            bits=wanted.bits,
            symmetric=wanted.symmetric,
            scale=params.scale * sign,
            zero=zero,
        ),
        activations=tensor.activations,
    )


def _group_of_each(params: AffineParams, cols: int) -> Tensor:
    """[cols] int64, the group of each column."""
    if params.group_index is not None:
        return params.group_index.to(torch.int64)
    size = cols // params.scale.shape[1]
    return torch.arange(cols, device=params.scale.device) // size


def _extremes(integers: Tensor, params: AffineParams) -> tuple[Tensor, Tensor]:
    """The smallest and the largest integer of each group, int32 [rows, groups]; 0 is in all."""
    if params.group_index is None:
        blocks = integers.reshape(*params.scale.shape, -1)
        smallest, largest = blocks.amin(-1), blocks.amax(-1)
    else:
        index = params.group_index.to(torch.int64).expand_as(integers)
        empty = torch.zeros_like(params.zero, dtype=torch.int16)
        smallest = empty.scatter_reduce(1, index, integers, "amin")
        largest = empty.scatter_reduce(1, index, integers, "amax")
    return smallest.to(torch.int32).clamp(max=0), largest.to(torch.int32).clamp(min=0)
