"""ggml's super-blocks of 256 weights: Q2_K, Q3_K, Q4_K, Q5_K, Q6_K.

Sub-blocks of 16 or 32 weights have small integer scales, and in the affine types minimums, which
one float16 of the block multiplies. A float16 times these integers is exact in float32.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

import torch
from torch import Tensor

from llmopt.grids.ggml import upstream
from llmopt.grids.ggml.base import Fields, ScalarGrid
from llmopt.grids.ggml.bits import half_bytes, pack_bits, read_half, to_half, unpack_bits
from llmopt.grids.ggml.refine import Moments, State
from llmopt.grids.ggml.scalar import Batch, ScalarBlocks

# How often block and sub-block fields are fitted to each other for given codes.
_SETTLE = 3
# By how much a scale or a minimum moves in each turn of a search.
_SIZES = ((1, 2, 3, 4, 5, 6, 8, 10), (1, 2, 3))
_SIGNED_SIZES = ((1, 2, 3, 4, 5, 6, 7, 8, 10, 12, 14, 16), (1, 2, 3))


class AffineSuperBlocks(ScalarBlocks):
    """value = d * scale * code - dmin * min."""

    low, rounds, distinct = 0, 3, len(_SIZES)

    def __init__(self, type_id: str, bits: int, sub: int, top: int) -> None:
        super().__init__(type_id)
        self.bits, self.sub, self.high, self.top = bits, sub, (1 << bits) - 1, top

    def upstream(self, part: Batch) -> tuple[State, Tensor]:
        x, importance, _ = part
        if importance is None:
            state, codes = self._upstream_plain(x)
        else:
            deviation = block_energy(x) * (1.0 if self.bits == 2 else 2.0)
            weights = importance * upstream.root(deviation + x * x)
            ranges = upstream.affine_ranges(self.high, -0.9, 0.05, 36)
            scale, minimum, codes = upstream.affine(x, weights, self.high, ranges)
            total = upstream.ordered_sum(weights)
            state = self._quantized(scale, minimum, total, total)
        scale, minimum = state["d"] * state["scales"], state["dmin"] * state["mins"]
        again = (x + minimum).div_(scale).round_().clamp_(0, self.high)
        return state, again if bool(scale.all()) else torch.where(scale == 0, codes, again)

    def _quantized(
        self, scale: Tensor, minimum: Tensor, weights: Tensor, min_weights: Tensor
    ) -> State:
        """scale and minimum [s, n] as integers times a float16 each."""
        values, both = torch.cat([scale, minimum], 1), torch.cat([weights, min_weights], 1)
        factor, levels = upstream.positive(values, both, self.top)
        d, dmin = half(factor).chunk(2)
        scales, mins = levels.chunk(2, 1)
        return {"d": d, "dmin": dmin, "scales": scales, "mins": mins}

    def _upstream_plain(self, x: Tensor) -> tuple[State, Tensor]:
        if self.bits == 2:
            weights, ranges = x.abs(), upstream.affine_ranges(self.high, -0.5, 0.1, 15)
        else:
            mean = torch.div(upstream.ordered_sum(x * x), torch.tensor(float(self.sub)))
            weights = upstream.root(mean) + x.abs()
            first, steps = (-1.0, 20) if self.bits == 4 else (-0.5, 15)
            ranges = upstream.affine_ranges(self.high, first, 0.1, steps)
        scale, minimum, codes = upstream.affine(
            x, weights, self.high, ranges, absolute=self.bits == 2
        )
        d, scales = self._by_largest(scale)
        dmin, mins = self._by_largest(minimum)
        return {"d": d, "dmin": dmin, "scales": scales, "mins": mins}, codes

    def _by_largest(self, values: Tensor) -> tuple[Tensor, Tensor]:
        """The float16 that makes the largest of values [s, n] `top`, and all as multiples of it."""
        largest = values.amax(0).clamp_(min=0.0).abs_()  # no negative zero
        top = torch.tensor(float(self.top))
        inverse = torch.where(largest > 0, torch.div(top, largest), 0.0)
        return half(torch.div(largest, top)), (values * inverse).round_().clamp_(max=self.top)

    def spread(self, state: State) -> tuple[Tensor, Tensor | None]:
        return state["d"] * state["scales"], -(state["dmin"] * state["mins"])

    def moves(self, state: State, turn: int) -> Iterator[Callable[[State], State]]:
        """The range of a sub-block changes at its upper end, its lower end, or both."""
        sizes = _SIZES[min(turn, len(_SIZES) - 1)]
        steps = [step for size in sizes for step in (size, -size)]
        # how many steps of min are as long as a step of scale at the highest code
        d, dmin = state["d"], state["dmin"]
        length = torch.where(dmin == 0, 0.0, d * self.high / dmin)
        for share in (0.0, 0.5, 1.0):
            for step in steps:
                yield partial(self._moved, scale=step, minimum=(length * (share * step)).round_())
        for step in steps:
            yield partial(self._moved, scale=0, minimum=step)

    def _moved(self, state: State, scale: int, minimum: Tensor | int) -> State:
        scales, mins = state["scales"] + scale, state["mins"] + minimum
        return {**state, "scales": scales.clamp_(0, self.top), "mins": mins.clamp_(0, self.top)}

    def settle(self, moments: Moments, state: State | None) -> State:
        if state is None:
            state = self._first(moments)
        d, dmin, scales, mins = (state[name] for name in ("d", "dmin", "scales", "mins"))
        for _ in range(_SETTLE):
            d, dmin = _solve(moments, scales, mins, d, dmin)
            scales, mins = self._integers(moments, scales, mins, d, dmin)
        return {"d": d, "dmin": dmin, "scales": scales, "mins": mins}

    def _first(self, moments: Moments) -> State:
        """Each sub-block on its own, then what block fields make of that."""
        w, x, q, qq, xq = moments
        determinant = w * qq - q * q
        mean = torch.where(w > 0, x / w, 0.0)
        offset = torch.where(determinant > 0, (qq * x - q * xq) / determinant, mean)
        offset = offset.clamp_(max=0.0)
        scale = torch.where(qq > 0, (xq - offset * q) / qq, 0.0).clamp_(min=0.0)
        return self._quantized(scale, -offset, qq, w)

    def _integers(
        self, moments: Moments, scales: Tensor, mins: Tensor, d: Tensor, dmin: Tensor
    ) -> tuple[Tensor, Tensor]:
        """The scales and mins of least error for given d and dmin: three scales are tried."""
        w, x, q, qq, xq = moments
        inverse = torch.where(dmin == 0, 0.0, 1 / (dmin * w))
        middle = torch.where(d == 0, 0.0, (xq + dmin * mins * q) / (d * qq))
        middle = torch.where(qq > 0, middle, scales).round_()
        best = torch.full_like(w, torch.inf)
        for step in (-1, 0, 1):
            tried = (middle + step).clamp_(0, self.top)
            a = d * tried
            minimum = ((a * q - x) * inverse).round_().clamp_(0, self.top)
            b = dmin * minimum
            found = a * (a * qq - 2 * xq - 2 * b * q) + b * (b * w + 2 * x)
            better = found < best
            best = torch.where(better, found, best)
            scales, mins = torch.where(better, tried, scales), torch.where(better, minimum, mins)
        return scales, mins

    def pack(self, fields: Fields, codes: Tensor) -> Tensor:
        scales, mins = fields["scales"].to(torch.uint8), fields["mins"].to(torch.uint8)
        halves = [half_bytes(fields["d"], self.spec.id), half_bytes(fields["dmin"], self.spec.id)]
        if self.bits == 2:
            return torch.cat([scales | (mins << 4), pack_bits(codes, 2, 32), *halves], 1)
        parts = [*halves, _pack_six(scales, mins)]
        if self.bits == 5:
            parts.append(pack_bits(codes >> 4, 1, 32))
        return torch.cat([*parts, pack_bits(codes & 15, 4, 32)], 1)

    def unpack(self, data: Tensor) -> tuple[Fields, Tensor]:
        if self.bits == 2:
            codes, start = unpack_bits(data[:, 16:80], 2, 32), 80
            scales, mins = data[:, :16] & 15, data[:, :16] >> 4
        else:
            codes, start = unpack_bits(data[:, -128:], 4, 32), 0
            scales, mins = _unpack_six(data[:, 4:16])
            if self.bits == 5:
                codes = codes | (unpack_bits(data[:, 16:48], 1, 32) << 4)
        fields = {
            "d": read_half(data, start),
            "dmin": read_half(data, start + 2),
            "scales": scales.to(torch.float32),
            "mins": mins.to(torch.float32),
        }
        return fields, codes.to(torch.float32)


def _solve(
    moments: Moments, scales: Tensor, mins: Tensor, d: Tensor, dmin: Tensor
) -> tuple[Tensor, Tensor]:
    """The float16 d and dmin of least error for given integers; the old where there is none."""
    w, x, q, qq, xq = moments
    dd, mm = (scales * scales * qq).sum(0), (mins * mins * w).sum(0)
    dm = (scales * mins * q).sum(0)
    dx, mx = (scales * xq).sum(0), (mins * x).sum(0)
    determinant = dd * mm - dm * dm
    solvable = determinant > 1e-6 * dd * mm
    both = (dx * mm - dm * mx) / determinant, (dx * dm - dd * mx) / determinant
    alone = torch.where(dd > 0, (dx + dmin * dm) / dd, d)
    return (
        to_half(torch.where(solvable, both[0], alone)),
        to_half(torch.where(solvable, both[1], dmin)),
    )


class SymmetricSuperBlocks(ScalarBlocks):
    """Q3_K and Q6_K: value = d * scale * level, with signed scales."""

    sub, rounds, distinct = 16, 4, len(_SIGNED_SIZES)

    def __init__(self, type_id: str, bits: int, scale_bits: int) -> None:
        super().__init__(type_id)
        self.bits, self.low, self.high = bits, -(1 << (bits - 1)), (1 << (bits - 1)) - 1
        self.half = 1 << (scale_bits - 1)

    def upstream(self, part: Batch) -> tuple[State, Tensor]:
        x, importance, _ = part
        if self.bits == 6:
            scale, levels = upstream.symmetric(x, x * x if importance is None else importance, 32)
            state = self._by_extreme(scale)
            nothing = scale.abs().amax(0) < upstream.NOTHING
            state = {name: value.masked_fill(nothing, 0.0) for name, value in state.items()}
            levels = levels.masked_fill_(nothing, self.low)
        elif importance is None:
            scale, levels = upstream.stepwise(x, 4)
            state = self._by_extreme(scale)
        else:
            weights = importance * upstream.root(2 * block_energy(x) + x * x)
            scale, levels = upstream.symmetric(x, weights, 4)
            d, scales = upstream.symmetric(scale, upstream.ordered_sum(weights), self.half)
            state = {"d": half(d), "scales": scales}
        scale, _ = self.spread(state)
        again = torch.div(x, scale).round_().clamp_(self.low, self.high)
        return state, torch.where(scale == 0, levels, again)

    def _by_extreme(self, scale: Tensor) -> State:
        """scale [s, n] as multiples of a float16 that makes the extreme -half."""
        extreme, _ = upstream.signed_extreme(scale)
        inverse = torch.div(torch.tensor(-float(self.half)), extreme)
        empty = extreme == 0
        scales = (scale * inverse).round_().clamp_(-self.half, self.half - 1)
        d = half(inverse.reciprocal()).masked_fill_(empty, 0.0)
        return {"d": d, "scales": scales.masked_fill_(empty, -self.half)}

    def spread(self, state: State) -> tuple[Tensor, Tensor | None]:
        return state["d"] * state["scales"], None

    def moves(self, state: State, turn: int) -> Iterator[Callable[[State], State]]:
        """Scales become larger or smaller; first also with the other sign, which has other ends."""
        sizes = _SIGNED_SIZES[min(turn, len(_SIGNED_SIZES) - 1)]
        steps = [step for size in sizes for step in (size, -size)]
        start = state["scales"]
        for step in steps:
            yield partial(self._moved, scales=start + step)
        if turn == 0:
            for step in (0, *steps):
                yield partial(self._moved, scales=-(start + step))

    def _moved(self, state: State, scales: Tensor) -> State:
        return {**state, "scales": scales.clamp(-self.half, self.half - 1)}

    def settle(self, moments: Moments, state: State | None) -> State:
        qq, xq = moments.qq, moments.xq
        own = torch.where(qq > 0, xq / qq, 0.0)
        if state is None:
            d, scales = upstream.symmetric(own, qq, self.half)
            state = {"d": to_half(d), "scales": scales}
        d, scales = state["d"], state["scales"]
        for _ in range(_SETTLE):
            norm = (scales * scales * qq).sum(0)
            d = torch.where(norm > 0, to_half((scales * xq).sum(0) / norm), d)
            fitted = (own / d).round_().clamp_(-self.half, self.half - 1)
            scales = torch.where((d == 0) | (qq == 0), scales, fitted)
        return {"d": d, "scales": scales}

    def pack(self, fields: Fields, codes: Tensor) -> Tensor:
        d = half_bytes(fields["d"], self.spec.id)
        if self.bits == 6:
            scales = fields["scales"].to(torch.int8).view(torch.uint8)
            return torch.cat(
                [pack_bits(codes & 15, 4, 64), pack_bits(codes >> 4, 2, 32), scales, d], 1
            )
        scales = (fields["scales"] + self.half).to(torch.uint8)
        scales = torch.cat([pack_bits(scales & 15, 4, 8), pack_bits(scales >> 4, 2, 4)], 1)
        return torch.cat([pack_bits(codes >> 2, 1, 32), pack_bits(codes & 3, 2, 32), scales, d], 1)

    def unpack(self, data: Tensor) -> tuple[Fields, Tensor]:
        if self.bits == 6:
            codes = unpack_bits(data[:, :128], 4, 64) | (unpack_bits(data[:, 128:192], 2, 32) << 4)
            scales = data[:, 192:208].contiguous().view(torch.int8).to(torch.float32)
        else:
            codes = unpack_bits(data[:, 32:96], 2, 32) | (unpack_bits(data[:, :32], 1, 32) << 2)
            six = unpack_bits(data[:, 96:104], 4, 8) | (unpack_bits(data[:, 104:108], 2, 4) << 4)
            scales = six.to(torch.float32) - self.half
        fields = {"d": read_half(data, self.spec.nbytes - 2), "scales": scales}
        return fields, codes.to(torch.float32) + self.low


def half(values: Tensor) -> Tensor:
    """Values rounded to float16 as ggml does, infinities and all."""
    return values.to(torch.float16).to(torch.float32)


def block_energy(x: Tensor) -> Tensor:
    """[n]: the mean square of blocks x [sub, s, n], summed in the order of the weights."""
    inner, subs, count = x.shape
    squares = x.transpose(0, 1).reshape(inner * subs, count).square_()
    return upstream.ordered_sum(squares).div_(inner * subs)


def _pack_six(scales: Tensor, mins: Tensor) -> Tensor:
    """uint8 [n, 12] from two uint8 [n, 8] of six bits."""
    first = scales[:, :4] | ((scales[:, 4:] >> 4) << 6)
    second = mins[:, :4] | ((mins[:, 4:] >> 4) << 6)
    return torch.cat([first, second, (scales[:, 4:] & 15) | ((mins[:, 4:] & 15) << 4)], 1)


def _unpack_six(data: Tensor) -> tuple[Tensor, Tensor]:
    """The inverse of _pack_six."""
    first, second, low = torch.split(data, 4, 1)
    scales = torch.cat([first & 63, (low & 15) | ((first >> 6) << 4)], 1)
    return scales, torch.cat([second & 63, (low >> 4) | ((second >> 6) << 4)], 1)


GRIDS: dict[str, ScalarGrid] = {
    "Q2_K": AffineSuperBlocks("Q2_K", bits=2, sub=16, top=15),
    "Q3_K": SymmetricSuperBlocks("Q3_K", bits=3, scale_bits=6),
    "Q4_K": AffineSuperBlocks("Q4_K", bits=4, sub=32, top=63),
    "Q5_K": AffineSuperBlocks("Q5_K", bits=5, sub=32, top=63),
    "Q6_K": SymmetricSuperBlocks("Q6_K", bits=6, scale_bits=8),
}
