"""Between integers with scales and zero points and ggml's blocks of 32, without rounding."""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor

from llmopt.grids import integer
from llmopt.grids.base import AffineParams, GridOptions, QuantizedTensor
from llmopt.grids.ggml.base import BlockTensor, Fields
from llmopt.grids.ggml.legacy import GRIDS
from llmopt.grids.ggml.scalar import ScalarBlocks
from llmopt.grids.recode import recode
from llmopt.specs.ggml import GGML_TYPES


def to_blocks(tensor: QuantizedTensor, type_id: str) -> BlockTensor | str:
    """`tensor` as blocks that decode to equal values, or why the type cannot hold it."""
    spec = GGML_TYPES[type_id]
    if not spec.is_integer:
        return f"{type_id} does not hold integers with a scale"
    grid, symmetric = cast("ScalarBlocks", GRIDS[type_id]), spec.symmetric
    bits = _bits(grid)
    if not tensor.grid.startswith("int"):
        return f"{tensor.grid} values are no integers"
    options = GridOptions(grid=f"int{bits}", bits=bits, group_size=32, symmetric=symmetric)
    if tensor.codes.shape[1] % 32:
        return f"blocks of 32 do not fill its {tensor.codes.shape[1]} inputs"
    moved = recode(tensor, options)
    if isinstance(moved, str):
        return moved
    if moved.params.group_index is not None:
        return "its inputs are out of order"
    codes, params = moved.codes.reshape(-1, 32), moved.params
    levels = codes.to(torch.int16) - params.zero.view(-1, 1).to(torch.int16) * symmetric
    # a byte holds -128, which ggml's encoder never writes, and its readers read
    lowest = -128 if type_id == "Q8_0" else grid.low
    if int(levels.min()) < lowest or int(levels.max()) > grid.high:
        return f"integers from {int(levels.min())} to {int(levels.max())} do not fit {type_id}"
    scale = params.scale.view(-1, 1)
    fields: Fields = {"d": scale}
    if not symmetric:
        fields["m"] = -(scale * params.zero.view(-1, 1))
    if any(not torch.equal(each.half().float(), each) for each in fields.values()):
        return "a scale or a minimum is not exact in float16"
    stored = levels - grid.low
    data = grid.pack(fields, stored if type_id == "Q8_0" else stored.to(torch.uint8))
    data = data.view(len(tensor.codes), -1)
    if not torch.equal(grid.decode(data), integer.decode(tensor.codes, tensor.params)):
        return f"{type_id} rounds its values differently"
    return BlockTensor(grid=type_id, data=data)


def from_blocks(tensor: BlockTensor) -> QuantizedTensor | str:
    """Blocks as integers that decode to equal values, or why they are none."""
    spec = GGML_TYPES[tensor.grid]
    if not spec.is_integer:
        return f"{tensor.grid} values are no integers with a scale"
    grid, symmetric = cast("ScalarBlocks", GRIDS[tensor.grid]), spec.symmetric
    bits = _bits(grid)
    fields, levels = grid.unpack(tensor.data.reshape(-1, spec.nbytes))
    scale, zero = fields["d"], torch.full_like(fields["d"], 2 ** (bits - 1))
    if not symmetric:
        scale, zero, levels = _around_zero(scale, fields["m"], levels)
    empty = scale == 0
    codes = torch.where(empty, zero, levels + (zero if symmetric else 0.0))
    outside = zero[(zero < 0) | (zero > 2**bits - 1)]
    if len(outside):
        return f"a zero point of {int(outside[0])} does not fit {bits} bits"
    rows = tensor.data.shape[0]
    params = AffineParams(
        bits=bits,
        group_size=32,
        symmetric=symmetric,
        scale=torch.where(empty, 1.0, scale).view(rows, -1),
        zero=zero.to(torch.int32).view(rows, -1),
    )
    found = QuantizedTensor(
        grid=f"int{bits}", codes=codes.to(torch.uint8).view(rows, -1), params=params
    )
    if not torch.equal(integer.decode(found.codes, params), grid.decode(tensor.data)):
        return "a minimum is no multiple of its scale"
    return found


def _bits(grid: ScalarBlocks) -> int:
    """Of the smallest of our grids of integers that has all codes of a type."""
    return 4 if grid.high - grid.low < 16 else 8


def _around_zero(scale: Tensor, minimum: Tensor, levels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Scale, zero point and codes of scale * level + minimum; a constant is its own scale."""
    constant = (scale == 0) & (minimum != 0)
    zero = torch.where(scale != 0, (-minimum / torch.where(scale != 0, scale, 1.0)).round(), 0.0)
    scale = torch.where(constant, minimum, scale)
    return scale, zero, torch.where(constant, 1.0, levels)
