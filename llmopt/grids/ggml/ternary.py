"""ggml's ternary super-blocks of 256 weights, each -d, 0 or d: TQ1_0 (five in a byte) and TQ2_0."""

from __future__ import annotations

import torch
from torch import Tensor

from llmopt.grids.ggml import upstream
from llmopt.grids.ggml.base import Fields, ScalarGrid
from llmopt.grids.ggml.bits import half_bytes, pack_bits, read_half, unpack_bits
from llmopt.grids.ggml.legacy import ScaledBlocks
from llmopt.grids.ggml.refine import State
from llmopt.grids.ggml.scalar import Batch


class Ternary(ScaledBlocks):
    """TQ2_0: two bits per weight. Its fourth code, 2 d, is read and never written."""

    sub, low, high = 256, -1, 1

    def upstream(self, part: Batch) -> tuple[State, Tensor]:
        x = part.x
        d = x.abs().amax(0)
        inverse = torch.where(d == 0, 0.0, d.reciprocal())
        return {"d": d.half().float()}, upstream.round_away(x * inverse)

    def pack(self, fields: Fields, codes: Tensor) -> Tensor:
        return torch.cat([pack_bits(codes, 2, 32), half_bytes(fields["d"][:, 0], self.spec.id)], 1)

    def unpack(self, data: Tensor) -> tuple[Fields, Tensor]:
        codes = unpack_bits(data[:, :64], 2, 32)
        return {"d": read_half(data, 64).unsqueeze(1)}, codes.to(torch.float32) - 1


# (weights, bytes they fill): each byte holds weights that lie this many bytes apart.
_PARTS = ((160, 32), (80, 16), (16, 4))


class Trits(Ternary):
    """TQ1_0: a byte is a fraction of 256 whose first digits in base 3 are codes.

    A digit comes out as the carry of a multiplication by 3.
    """

    def pack(self, fields: Fields, codes: Tensor) -> Tensor:
        packed = []
        counts, runs = [n for n, _ in _PARTS], [run for _, run in _PARTS]
        for part, run in zip(torch.split(codes, counts, 1), runs, strict=True):
            digits = part.reshape(len(part), -1, run).to(torch.int32)
            number = torch.zeros_like(digits[:, 0])
            for index in range(5):
                number = number * 3 + (digits[:, index] if index < digits.shape[1] else 0)
            packed.append(((number * 256 + 242) // 243).to(torch.uint8))
        return torch.cat([*packed, half_bytes(fields["d"][:, 0], self.spec.id)], 1)

    def unpack(self, data: Tensor) -> tuple[Fields, Tensor]:
        codes, start = [], 0
        for count, run in _PARTS:
            rest = data[:, start : start + run].to(torch.int32)
            for _ in range(count // run):
                codes.append((rest * 3) >> 8)
                rest = (rest * 3) & 255
            start += run
        return {"d": read_half(data, 52).unsqueeze(1)}, torch.cat(codes, 1).to(torch.float32) - 1


GRIDS: dict[str, ScalarGrid] = {"TQ1_0": Trits("TQ1_0"), "TQ2_0": Ternary("TQ2_0")}
