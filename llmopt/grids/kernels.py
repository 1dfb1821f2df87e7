"""Loops over one column after the other, compiled for the processor when they are first used.

A step over a column of some rows is too short for a tensor operation: calling it takes longer than
computing it. Here rows are worked on side by side in the lanes of a vector, and what a few columns
of them need stays in the cache. Each sum has one order, whatever the width of the vectors.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TypeAlias, TypeVar, cast

import numba
import numpy as np
from numpy.typing import NDArray

# Rows that are worked on at once: a dozen columns of them fit a level 1 cache.
_ROWS = 128
# Columns whose changes reach the columns after them together: each of those is read and written
# once for all.
_COLUMNS = 4
# Added to a float32 below 2^22 and taken off again, it rounds to whole numbers, ties to even.
_ROUNDING = np.float32(1.5 * 2**23)

# float16's smallest number, its smallest normal one, and its largest
_TINY, _NORMAL, _HUGE = np.float32(2.0**-24), np.float32(2.0**-14), np.float32(65504)
_HALF, _ONE = np.float32(0.5), np.float32(1)

_vector, _matrix = numba.float32[::1], numba.float32[:, ::1]
_groups = numba.float32[:, :, ::1]


Floats: TypeAlias = "NDArray[np.float32]"
Sums: TypeAlias = "NDArray[np.float64]"
F = TypeVar("F", bound=Callable[..., None])


def _inner(function: F) -> F:
    """For other loops alone, into which it is compiled."""
    made = numba.njit(function, nogil=True, error_model="numpy", fastmath={"contract"})
    return cast("F", made)


def _compiled(*arguments: object) -> Callable[[F], F]:
    """Compile for these arguments, or take what was compiled for this processor before."""

    def compile_it(function: F) -> F:
        make = partial(
            numba.njit, numba.void(*arguments),
            nogil=True, error_model="numpy", fastmath={"contract"},
        )  # fmt: skip
        try:
            return cast("F", make(cache=True)(function))
        except RuntimeError:  # neither this folder nor the user's own can be written to
            return cast("F", make()(function))

    return compile_it


@_inner
def _to_whole(wanted: Floats, step: Floats, least: Floats, most: Floats, code: Floats) -> None:
    for row in range(len(code)):
        exact = wanted[row] / step[row]
        # comparisons become vector instructions, min and max do not
        exact = exact if exact > least[row] else least[row]
        exact = exact if exact < most[row] else most[row]
        code[row] = (exact + _ROUNDING) - _ROUNDING


@_inner
def _to_level(wanted: Floats, step: Floats, levels: Floats, middles: Floats, code: Floats) -> None:
    for row in range(len(code)):
        code[row] = wanted[row] / step[row]
    index = np.zeros(len(code), np.int32)
    for middle in middles:
        for row in range(len(code)):
            index[row] += 1 if middle < code[row] else 0
    for row in range(len(code)):
        code[row] = levels[index[row]]


@_inner
def _spread(change: Floats, weight: float, moved: Floats) -> None:
    for row in range(len(moved)):
        moved[row] += weight * change[row]


@_inner
def _spread_four(
    first: Floats,
    second: Floats,
    third: Floats,
    fourth: Floats,
    a: float,
    b: float,
    c: float,
    d: float,
    moved: Floats,
) -> None:
    for row in range(len(moved)):
        moved[row] += a * first[row] + b * second[row] + c * third[row] + d * fourth[row]


@_compiled(
    _matrix, _matrix, _matrix, _matrix, _matrix, _matrix, numba.float32[:, :],
    _vector, _vector,
)  # fmt: skip
def round_with_feedback(
    target: Floats,
    current: Floats,
    codes: Floats,
    scale: Floats,
    low: Floats,
    high: Floats,
    coupling: Floats,
    levels: Floats,
    middles: Floats,
) -> None:
    """As `llmopt.grids.affine.round_with_feedback`.

    levels: none for whole numbers. middles: what lies between each two of them.
    """
    n, rows = target.shape
    for start in range(0, rows, _ROWS):
        part = slice(start, min(start + _ROWS, rows))
        for first in range(0, n, _COLUMNS):
            stop = min(first + _COLUMNS, n)
            for i in range(first, stop):
                step, code = scale[min(i, len(scale) - 1), part], codes[i, part]
                if len(levels):
                    _to_level(target[i, part], step, levels, middles, code)
                else:
                    least, most = low[min(i, len(low) - 1), part], high[min(i, len(high) - 1), part]
                    _to_whole(target[i, part], step, least, most, code)
                change = current[i, part]
                for row in range(len(change)):
                    change[row] -= code[row] * step[row]
                for later in range(i + 1, stop):
                    _spread(change, coupling[i, later], target[later, part])
            if stop == n:
                break
            a, b, c, d = first, first + 1, first + 2, first + 3
            for later in range(stop, n):
                _spread_four(
                    current[a, part],
                    current[b, part],
                    current[c, part],
                    current[d, part],
                    coupling[a, later],
                    coupling[b, later],
                    coupling[c, later],
                    coupling[d, later],
                    target[later, part],
                )


@_inner
def _to_float16(scale: Floats) -> None:
    """As `llmopt.grids.affine.round_scale`, in place."""
    rounded = np.empty_like(scale)
    bits = rounded.view(np.int32)
    for row in range(len(scale)):
        size = abs(scale[row])
        size = size if size > _TINY else _TINY
        rounded[row] = size if size < _HUGE else _HUGE
    for row in range(len(scale)):
        # float16's steps below its normal numbers are float32's at a half; above, 13 bits go
        low = (rounded[row] + _HALF) - _HALF
        small = rounded[row] < _NORMAL
        bits[row] = (bits[row] + np.int32(0xFFF) + ((bits[row] >> 13) & 1)) & np.int32(~0x1FFF)
        size = low if small else rounded[row]
        signed = -size if scale[row] < 0 else size
        scale[row] = _ONE if scale[row] == 0 else signed


@_inner
def _add_moments(
    x: Floats, weight: float, scale: Floats, zero: Floats, top: float, dot: Sums, norm: Sums
) -> None:
    """Add w x c and w c^2 of the codes of x, counted from their zero points."""
    for row in range(len(x)):
        code = x[row] / scale[row]
        code = code if code > -zero[row] else -zero[row]
        code = code if code < top - zero[row] else top - zero[row]
        code = (code + _ROUNDING) - _ROUNDING
        weighed = np.float64(code * weight)
        dot[row] += weighed * np.float64(x[row])
        norm[row] += weighed * np.float64(code)


@_compiled(
    _groups, numba.float32[:, :], _groups, _groups, numba.float32, numba.int64,
    _matrix, _matrix,
)  # fmt: skip
def search_scales(
    x: Floats,
    weights: Floats,
    scales: Floats,
    zeros: Floats,
    top: float,
    rounds: int,
    best_scale: Floats,
    best_zero: Floats,
) -> None:
    """The best of some scales and zeros, and then `rounds` times the best for its codes.

    x: [n, groups, rows]. weights: [n, groups]. scales, zeros: [candidates, groups, rows]. top: the
    largest code. best_scale, best_zero: [groups, rows], overwritten.
    """
    n, groups, rows = x.shape
    candidates = len(scales)
    for group in range(groups):
        for start in range(0, rows, _ROWS):
            part = slice(start, min(start + _ROWS, rows))
            found_scale, found_zero = best_scale[group, part], best_zero[group, part]
            gain = np.full(len(found_scale), -1.0)
            found_scale[:] = 0
            found_zero[:] = 0
            for candidate in range(candidates + rounds):
                if candidate < candidates:
                    scale = scales[candidate, group, part].copy()
                    zero = zeros[candidate, group, part]
                else:
                    scale, zero = found_scale.copy(), found_zero.copy()
                _to_float16(scale)
                # in float32 sums do not tell apart what is left of 8 bits
                dot, norm = np.zeros(len(scale)), np.zeros(len(scale))
                for i in range(n):
                    _add_moments(x[i, group, part], weights[i, group], scale, zero, top, dot, norm)
                for row in range(len(scale)):
                    if norm[row] > 0:
                        scale[row] = dot[row] / norm[row]
                _to_float16(scale)
                for row in range(len(scale)):
                    gained = scale[row] * (2 * dot[row] - scale[row] * norm[row])
                    if gained > gain[row]:
                        gain[row] = gained
                        found_scale[row] = scale[row]
                        found_zero[row] = zero[row]
