"""What every grid of the form value = scale * (code - zero) shares."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from llmopt.errors import RequestError
from llmopt.grids.base import AffineParams

# Up to here columns are rounded one by one, above by halves with a matrix product in between.
_FEW_COLUMNS, _FEW_ON_CPU = 16, 64


def group_length(cols: int, group_size: int) -> int:
    """Columns in a group, or RequestError where groups do not fill the width."""
    size = cols if group_size == -1 else group_size
    if size < 1 or cols % size:
        raise RequestError(f"group size {group_size} does not divide {cols} input channels")
    return size


def round_scale(scale: Tensor, dtype: str = "float16") -> Tensor:
    """The nearest usable values of a dtype, as float32: finite and not zero, with the sign kept.

    A scale of exactly 0 belongs to a group with nothing in it and becomes 1.
    """
    stored: torch.dtype = getattr(torch, dtype)
    limits = torch.finfo(stored)
    tiny = limits.smallest_normal * (limits.eps if stored == torch.float16 else 1.0)
    magnitude = scale.abs().clamp(tiny, limits.max).to(stored).to(torch.float32)
    return torch.where(scale == 0, torch.ones_like(scale), magnitude.copysign(scale))


def encode(w: Tensor, params: AffineParams) -> Tensor:
    """Nearest codes, uint8 [rows, cols]."""
    scale, zero, shape = per_column(params, w.shape[1])
    codes = (w.reshape(shape) / scale).round_().add_(zero).clamp_(0, 2**params.bits - 1)
    return codes.to(torch.uint8).view(w.shape)


def decode(codes: Tensor, params: AffineParams) -> Tensor:
    """The float32 values [rows, cols] that `codes` stand for: scale * (code - zero)."""
    scale, zero, shape = per_column(params, codes.shape[1])
    return codes.reshape(shape).to(torch.float32).sub_(zero).mul_(scale).view(codes.shape)


@dataclass(frozen=True)
class Columns:
    """Columns of a weight under way, and what they may become.

    target, current, codes: [n, rows] float32, a column of the weight to each row, contiguous.
    scale, low, high: [n, rows], or [1, rows] where all columns share them.
    """

    target: Tensor
    current: Tensor
    codes: Tensor
    scale: Tensor
    low: Tensor
    high: Tensor

    def part(self, some: slice[int, int, None]) -> Columns:
        """Some of the columns."""
        step, least, most = (
            x if len(x) == 1 else x[some] for x in (self.scale, self.low, self.high)
        )
        return Columns(self.target[some], self.current[some], self.codes[some], step, least, most)

    def in_turn(self) -> Iterator[tuple[Tensor, ...]]:
        """Of each column, [rows]: target, current, code, scale, low, high."""
        n = len(self.target)
        shared = (x.expand(n, -1).unbind() for x in (self.scale, self.low, self.high))
        own = (x.unbind() for x in (self.target, self.current, self.codes))
        return zip(*own, *shared, strict=True)


def round_with_feedback(columns: Columns, coupling: Tensor, levels: Tensor | None = None) -> None:
    """Round columns in turn; each change of a value moves the targets of the columns after it.

    Column i gets the code c nearest to target[i] / scale[i] in [low[i], high[i]], counted from the
    zero point; then target[k] += coupling[i, k] * (current[i] - c * scale[i]) for every k > i.

    Three tensors are overwritten: target with what each column was rounded from, current with the
    changes current - c * scale, codes with c. coupling: [n, n], of which the part above the
    diagonal is read. levels: what codes may be, ascending, where they are not whole numbers; low
    and high then do not matter.
    """
    target = columns.target
    n = len(target)
    if n <= (_FEW_ON_CPU if target.is_cpu else _FEW_COLUMNS):
        (_settle_on_cpu if target.is_cpu else _settle)(columns, coupling, levels)
        return
    half = n // 2
    first, last = slice(0, half), slice(half, n)
    round_with_feedback(columns.part(first), coupling[first, first], levels)
    target[last].addmm_(coupling[first, last].T, columns.current[first])
    round_with_feedback(columns.part(last), coupling[last, last], levels)


def _settle(columns: Columns, coupling: Tensor, levels: Tensor | None) -> None:
    """As `round_with_feedback`, one column after the other."""
    n = len(columns.target)
    middles = None if levels is None else _middles(levels)
    coupled = coupling.unsqueeze(2).unbind()
    for i, (wanted, change, code, step, least, most) in enumerate(columns.in_turn()):
        torch.div(wanted, step, out=code)
        if levels is None or middles is None:
            torch.clamp(code.round_(), least, most, out=code)
        else:
            code.copy_(levels[torch.bucketize(code, middles)])
        change.addcmul_(code, step, value=-1)
        if i + 1 < n:  # a rank-1 update; addr_ would be slower
            columns.target[i + 1 :].addcmul_(coupled[i][i + 1 :], change)


def _settle_on_cpu(columns: Columns, coupling: Tensor, levels: Tensor | None) -> None:
    """As `_settle`, compiled."""
    from llmopt.grids import kernels  # takes half a second

    table = columns.target.new_empty(0) if levels is None else levels
    step, least, most = (x.contiguous().numpy() for x in (columns.scale, columns.low, columns.high))
    kernels.round_with_feedback(
        columns.target.numpy(), columns.current.numpy(), columns.codes.numpy(), step, least, most,
        coupling.numpy(), table.numpy(), _middles(table).numpy(),
    )  # fmt: skip


def _middles(levels: Tensor) -> Tensor:
    return (levels[1:] + levels[:-1]) / 2


def per_column(params: AffineParams, cols: int) -> tuple[Tensor, Tensor, tuple[int, ...]]:
    """Scale and zero that broadcast over columns reshaped as the returned shape."""
    if params.group_index is not None:
        index = params.group_index.to(torch.int64)
        return params.scale[:, index], params.zero[:, index], (-1, cols)
    groups = params.scale.shape[1]
    return params.scale.unsqueeze(-1), params.zero.unsqueeze(-1), (-1, groups, cols // groups)
