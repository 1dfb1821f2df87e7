"""Codes of 2, 3, 4 or 8 bits in streams of 32-bit words."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

#: codes that together fill whole words, whatever their width
LANES = 32


def words_for(count: int, bits: int) -> int:
    """How many 32-bit words a stream of codes takes."""
    return -(-count * bits // 32)


def pack_bits(values: Tensor, bits: int) -> Tensor:
    """Codes [n, m] of any integer dtype as int32 words [n, ceil(m * bits / 32)], low bits first.

    Where codes do not fill the last word, its highest bits are 0.
    """
    n, m = values.shape
    width = words_for(m, bits)
    if m % LANES:
        values = F.pad(values, (0, -m % LANES))
    lanes = values.reshape(n, -1, LANES)
    words = torch.zeros(n, lanes.shape[1], bits, dtype=torch.int32, device=values.device)
    for i in range(LANES):
        word, shift = divmod(i * bits, 32)
        lane = lanes[:, :, i].to(torch.int32)
        words[:, :, word] |= lane << shift
        if shift + bits > 32:
            words[:, :, word + 1] |= lane >> (32 - shift)
    return words.reshape(n, -1)[:, :width].contiguous()


def unpack_bits(words: Tensor, bits: int, count: int | None = None) -> Tensor:
    """The uint8 codes [n, count] in int32 words [n, ceil(count * bits / 32)].

    Without a count, the words hold 32 codes for every `bits` of them.
    """
    n, width = words.shape
    if width % bits:
        words = F.pad(words, (0, -width % bits))
    stream = words.reshape(n, -1, bits)
    codes = torch.empty(n, stream.shape[1], LANES, dtype=torch.uint8, device=words.device)
    for i in range(LANES):
        word, shift = divmod(i * bits, 32)
        # the shift copies the sign downwards: only what lies below it counts
        value = (stream[:, :, word] >> shift) & (2 ** min(bits, 32 - shift) - 1)
        if shift + bits > 32:
            value = value | (stream[:, :, word + 1] << (32 - shift))
        codes[:, :, i] = (value & (2**bits - 1)).to(torch.uint8)
    return codes.reshape(n, -1)[:, :count].contiguous()
