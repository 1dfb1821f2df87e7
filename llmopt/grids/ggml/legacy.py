"""ggml's blocks of 32 weights with one float16 scale: Q4_0, Q4_1, Q5_0, Q5_1, Q8_0."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from llmopt.grids.ggml import upstream
from llmopt.grids.ggml.base import Fields, ScalarGrid
from llmopt.grids.ggml.bits import half_bytes, pack_bits, read_half, to_half, unpack_bits
from llmopt.grids.ggml.refine import Moments, State
from llmopt.grids.ggml.scalar import Batch, ScalarBlocks

# Relative changes of a scale that a search tries, by turn: wide first, then finer.
_STEPS = ((0.02, 0.04, 0.06, 0.08, 0.11, 0.15, 0.2, 0.26), (0.005, 0.01, 0.015), (0.001, 0.0025))


def steps_of(turn: int) -> Iterator[float]:
    """Factors for a scale in this turn of a search."""
    for step in _STEPS[min(turn, len(_STEPS) - 1)]:
        yield 1 - step
        yield 1 + step


class ScaledBlocks(ScalarBlocks):
    """value = d * level: one float16 scale, no offset."""

    distinct = len(_STEPS)

    def spread(self, state: State) -> tuple[Tensor, Tensor | None]:
        return state["d"], None

    def moves(self, state: State, turn: int) -> Iterator[Callable[[State], State]]:
        d = state["d"]
        if turn == 0:
            yield lambda _: {"d": -d}
        signs = (1, -1) if turn == 0 and self.low != -self.high else (1,)
        for factor in steps_of(turn):
            for sign in signs:
                yield lambda _, by=factor * sign: {"d": to_half(d * by)}  # type: ignore[misc]

    def settle(self, moments: Moments, state: State | None) -> State:
        before = torch.zeros_like(moments.w) if state is None else state["d"]
        return {"d": torch.where(moments.qq > 0, to_half(moments.xq / moments.qq), before)}


class SymmetricBlocks(ScaledBlocks):
    """Q4_0 and Q5_0: levels from -half to half - 1."""

    sub = 32

    def __init__(self, type_id: str, bits: int) -> None:
        super().__init__(type_id)
        self.bits, self.low, self.high = bits, -(1 << (bits - 1)), (1 << (bits - 1)) - 1

    def energy(self, w: Tensor) -> Tensor:
        return row_energy(w, self.width)

    def upstream(self, part: Batch) -> tuple[State, Tensor]:
        x, importance, energy = part
        half = -self.low
        if importance is not None:
            weights = importance * upstream.root(energy + x * x)
            scale, levels = upstream.symmetric(x, weights, half)
            return {"d": scale.half().float()}, levels
        extreme, _ = upstream.signed_extreme(x)
        d = extreme / -half
        inverse = torch.where(d == 0, 0.0, d.reciprocal())
        codes = (x * inverse).add_(half + 0.5).trunc_().clamp_(max=2 * half - 1)
        return {"d": d.half().float()}, codes.sub_(half)

    def pack(self, fields: Fields, codes: Tensor) -> Tensor:
        return torch.cat(
            [half_bytes(fields["d"][:, 0], self.spec.id), pack_codes(codes, self.bits)], 1
        )

    def unpack(self, data: Tensor) -> tuple[Fields, Tensor]:
        codes = unpack_codes(data[:, 2:], self.bits)
        return {"d": read_half(data, 0).unsqueeze(1)}, codes.to(torch.float32) + self.low


class AffineBlocks(ScalarBlocks):
    """Q4_1 and Q5_1: value = d * code + m, both float16."""

    sub, low, distinct = 32, 0, len(_STEPS)

    def __init__(self, type_id: str, bits: int) -> None:
        super().__init__(type_id)
        self.bits, self.high = bits, (1 << bits) - 1

    def energy(self, w: Tensor) -> Tensor:
        return row_energy(w, self.width)

    def upstream(self, part: Batch) -> tuple[State, Tensor]:
        x, importance, energy = part
        if importance is not None:
            weights = importance * upstream.root(energy + x * x)
            ranges = upstream.affine_ranges(self.high, -0.9, 0.05, 36)
            scale, minimum, codes = upstream.affine(x, weights, self.high, ranges)
            return {"d": scale.half().float(), "m": -minimum.half().float()}, codes
        low = x.amin(0)
        d = torch.div(x.amax(0) - low, torch.tensor(float(self.high)))
        inverse = torch.where(d == 0, 0.0, d.reciprocal())
        codes = (x - low).mul_(inverse).add_(0.5).trunc_().clamp_(max=self.high)
        return {"d": d.half().float(), "m": low.half().float()}, codes

    def spread(self, state: State) -> tuple[Tensor, Tensor | None]:
        return state["d"], state["m"]

    def moves(self, state: State, turn: int) -> Iterator[Callable[[State], State]]:
        """The range grows or shrinks at its lower end, its upper end, or both."""
        d, m = state["d"], state["m"]
        for factor in steps_of(turn):
            change = d * (self.high * (1 - factor))
            for share in (0.0, 0.5, 1.0):
                moved = {"d": to_half(d * factor), "m": to_half(m + share * change)}
                yield lambda _, moved=moved: moved  # type: ignore[misc]
            yield lambda _, by=change: {"d": d, "m": to_half(m + 0.5 * by)}  # type: ignore[misc]

    def settle(self, moments: Moments, state: State | None) -> State:  # noqa: ARG002
        w, x, q, qq, xq = moments
        determinant = w * qq - q * q
        solvable = determinant > 1e-6 * w * qq
        mean = torch.where(w > 0, x / w, 0.0)
        d = to_half(torch.where(solvable, (w * xq - x * q) / determinant, 0.0))
        m = torch.where(solvable, (x - d * q) / w, mean)
        return {"d": d, "m": to_half(m)}

    def pack(self, fields: Fields, codes: Tensor) -> Tensor:
        heads = [
            half_bytes(fields["d"][:, 0], self.spec.id),
            half_bytes(fields["m"][:, 0], self.spec.id),
        ]
        return torch.cat([*heads, pack_codes(codes, self.bits)], 1)

    def unpack(self, data: Tensor) -> tuple[Fields, Tensor]:
        fields = {"d": read_half(data, 0).unsqueeze(1), "m": read_half(data, 2).unsqueeze(1)}
        return fields, unpack_codes(data[:, 4:], self.bits).to(torch.float32)


class Bytes(ScaledBlocks):
    """Q8_0: a signed byte per weight, of which -128 is never written."""

    sub, low, high = 32, -127, 127

    def upstream(self, part: Batch) -> tuple[State, Tensor]:
        x = part.x
        d = torch.div(x.abs().amax(0), torch.tensor(127.0))
        inverse = torch.where(d == 0, 0.0, d.reciprocal())
        return {"d": d.half().float()}, upstream.round_away(x * inverse)

    def pack(self, fields: Fields, codes: Tensor) -> Tensor:
        signed = (codes.to(torch.int16) + self.low).to(torch.int8)
        return torch.cat([half_bytes(fields["d"][:, 0], self.spec.id), signed.view(torch.uint8)], 1)

    def unpack(self, data: Tensor) -> tuple[Fields, Tensor]:
        levels = data[:, 2:].contiguous().view(torch.int8).to(torch.float32)
        return {"d": read_half(data, 0).unsqueeze(1)}, levels


def row_energy(w: Tensor, width: int) -> Tensor:
    """[blocks]: the mean square of the row that each block of `width` weights lies in, summed in
    order.
    """
    rows, cols = w.shape
    squares = w.new_zeros(cols, rows + -rows % upstream.LANES)
    torch.square(w.T, out=squares[:, :rows])
    mean = torch.div(upstream.ordered_sum(squares)[:rows], torch.tensor(float(cols)))
    return mean.repeat_interleave(cols // width)


def pack_codes(codes: Tensor, bits: int) -> Tensor:
    """Codes [n, 32] of 4 or 5 bits: fifth bits in four bytes, then nibbles of two halves."""
    nibbles = pack_bits(codes & 15, 4, 16)
    return nibbles if bits == 4 else torch.cat([pack_bits(codes >> 4, 1, 1), nibbles], 1)


def unpack_codes(data: Tensor, bits: int) -> Tensor:
    """The inverse of pack_codes."""
    if bits == 4:
        return unpack_bits(data, 4, 16)
    return unpack_bits(data[:, 4:], 4, 16) | (unpack_bits(data[:, :4], 1, 1) << 4)


GRIDS: dict[str, ScalarGrid] = {
    "Q4_0": SymmetricBlocks("Q4_0", 4),
    "Q4_1": AffineBlocks("Q4_1", 4),
    "Q5_0": SymmetricBlocks("Q5_0", 5),
    "Q5_1": AffineBlocks("Q5_1", 5),
    "Q8_0": Bytes("Q8_0"),
}
