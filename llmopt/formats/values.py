"""Whether stored numbers are numbers: NaN and infinity are found by their bits. No torch.

Every tensor is read once, piece by piece, whatever it is for: a plain weight, a buffer, a scale, a
code in FP8, the blocks of a GGUF file. Integers and bytes cannot be anything else.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from llmopt.errors import RequestError
from llmopt.formats.files import open_regular
from llmopt.formats.gguf.restore import BLOCKS
from llmopt.formats.quantization import read_quantization
from llmopt.formats.tensor_header import DTYPE_BYTES, Headers, TensorHeader
from llmopt.specs.ggml import GGML_TYPES

Bytes = np.ndarray[Any, np.dtype[np.uint8]]
Flags = np.ndarray[Any, np.dtype[np.bool_]]

#: what fits a core's cache
_PIECE = 1 << 19
#: of each float, the bits that are not its sign, and what they are from where on it is no number
_FLOATS = {
    "F16": (0x7FFF, 0x7C00),
    "BF16": (0x7FFF, 0x7F80),
    "F32": (0x7FFF_FFFF, 0x7F80_0000),
    "F64": (0x7FFF_FFFF_FFFF_FFFF, 0x7FF0_0000_0000_0000),
    "F8_E4M3": (0x7F, 0x7F),  # it has no infinity
    "F8_E5M2": (0x7F, 0x7C),
    "F8_E8M0": (0xFF, 0xFF),
}
#: where the blocks of ggml's types hold numbers in float16
_HALVES = {
    **dict.fromkeys(("Q4_0", "Q5_0", "Q8_0", "IQ4_NL", "IQ4_XS", "IQ3_XXS", "IQ3_S"), (0,)),
    **dict.fromkeys(("IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ1_S"), (0,)),
    **dict.fromkeys(("Q4_1", "Q5_1", "Q4_K", "Q5_K"), (0, 2)),
    "Q2_K": (80, 82),
    "Q3_K": (108,),
    "Q6_K": (208,),
    "TQ1_0": (52,),
    "TQ2_0": (64,),
}
#: a scalar that masks attention in some old checkpoints: minus infinity is what it means
_MASK = ".masked_bias"


@dataclass(frozen=True)
class _Kind:
    """How a tensor's bytes are looked at: in units of so many bytes, called so."""

    unit: int
    #: whether a piece has none that is spoiled
    clean: Callable[[Bytes], bool]
    #: which are
    spoiled: Callable[[Bytes], Flags]
    called: str = "values"


def check_values(headers: Headers, progress: Callable[[int, int], None] = lambda *_: None) -> None:
    """RequestError naming the first tensor with NaN or infinite values, how many, and where.

    `progress` is told how many of all bytes are done.
    """
    kinds = {name: kind for name in headers.tensors if (kind := _kind(headers, name))}
    done, total = 0, sum(headers.tensors[name].nbytes for name in kinds)
    for name, kind in kinds.items():
        for piece in _pieces(headers.tensors[name], kind.unit):
            if not kind.clean(piece):
                raise _refusal(headers.tensors[name], kind)
        done += headers.tensors[name].nbytes
        progress(done, total)


def _kind(headers: Headers, name: str) -> _Kind | None:
    """How a tensor is looked at; None where all its bytes are numbers."""
    header = headers.tensors[name]
    if name.endswith(_MASK) and math.prod(header.shape) == 1:
        return None
    if header.dtype in _FLOATS:
        width, bits = DTYPE_BYTES[header.dtype], _FLOATS[header.dtype]
        how = f"<u{width}", *bits
        return _Kind(width, partial(_all_numbers, *how), partial(_no_numbers, *how))
    type_id = _block_type(headers, header)
    spoiled = _SPOILED.get(type_id)
    if spoiled is None:
        return None
    size = GGML_TYPES[type_id].nbytes
    find = partial(_in_blocks, size, spoiled)
    return _Kind(size, lambda piece: not find(piece).any(), find, "blocks")


def _block_type(headers: Headers, header: TensorHeader) -> str:
    """The ggml type of a tensor's blocks, of a linear or another; else its dtype."""
    module = header.name.removesuffix(f".{BLOCKS}")
    if header.dtype != "U8" or module == header.name:
        return header.dtype
    quantization = read_quantization(headers.folder, headers.config)
    layout = quantization.layer(module) if quantization else None
    return layout.grid if layout else header.dtype


def _all_numbers(dtype: str, mask: int, first: int, piece: Bytes) -> bool:
    bits = piece.view(dtype)
    return not bits.size or int((bits & bits.dtype.type(mask)).max()) < first


def _no_numbers(dtype: str, mask: int, first: int, piece: Bytes) -> Flags:
    bits = piece.view(dtype)
    found: Flags = (bits & bits.dtype.type(mask)) >= first
    return found


def _in_blocks(size: int, spoiled: Callable[[Bytes], Flags], piece: Bytes) -> Flags:
    return spoiled(piece.reshape(-1, size))


def _halves(offsets: tuple[int, ...], blocks: Bytes) -> Flags:
    found: Flags = np.zeros(len(blocks), np.bool_)
    for offset in offsets:
        found |= blocks[:, offset + 1] & 0x7C == 0x7C
    return found


def _iq1_m(blocks: Bytes) -> Flags:
    """The float16 lies in the highest four bits of the last four words."""
    found: Flags = (blocks[:, 55] & 0x70 == 0x70) & (blocks[:, 53] & 0xC0 == 0xC0)
    return found


def _mxfp4(blocks: Bytes) -> Flags:
    """Powers of two of which float32 does not hold the largest multiple, and NaN."""
    found: Flags = blocks[:, 0] > 252
    return found


#: of ggml's types, which blocks [n, bytes] have a scale or a minimum that is no number
_SPOILED: dict[str, Callable[[Bytes], Flags]] = {
    **{type_id: partial(_halves, offsets) for type_id, offsets in _HALVES.items()},
    "IQ1_M": _iq1_m,
    "MXFP4": _mxfp4,
}


def _pieces(header: TensorHeader, unit: int) -> Iterator[Bytes]:
    """A tensor's bytes in whole units; each piece is gone when the next is asked for."""
    size = min(_PIECE // unit * unit, header.nbytes)
    buffer = np.empty(size, np.uint8)
    with open_regular(header.file) as file:
        file.seek(header.start)
        left = header.nbytes
        while left:
            piece = buffer[: min(size, left)]
            if file.readinto(piece.data) != len(piece):
                raise RequestError(f"{header.file.name} ended inside tensor {header.name}")
            left -= len(piece)
            yield piece


def _refusal(header: TensorHeader, kind: _Kind) -> RequestError:
    """How many of a tensor's values are no numbers, and where the first is."""
    count, first, seen = 0, -1, 0
    for piece in _pieces(header, kind.unit):
        spoiled = np.flatnonzero(kind.spoiled(piece))
        if len(spoiled) and first < 0:
            first = seen + int(spoiled[0])
        count, seen = count + len(spoiled), seen + len(piece) // kind.unit
    place: object = first
    if kind.called == "values" and header.arranged is None and header.shape:
        place = [int(index) for index in np.unravel_index(first, header.shape)]
    return RequestError(
        f"tensor {header.name} holds NaN or infinite values: {count:,} of its {seen:,} "
        f"{kind.called}, the first at {place}"
    )
