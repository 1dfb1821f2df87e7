"""Windows of equal length cut from a token stream, and how much two sets of them share."""

from __future__ import annotations

import random
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from llmopt.corpora.tokenize import Tokens
from llmopt.errors import RequestError
from llmopt.specs.base import counted

_CHUNK = 64  # tokens: long enough that two texts share one only where one copies the other


def calibration_windows(tokens: Tokens, sequences: int, length: int, seed: int) -> Tensor:
    """[sequences, length] int64: windows that do not overlap, chosen and ordered by `seed`.

    Where the family begins every sequence with bos, each window's first token is that bos.
    RequestError where the stream holds fewer windows than that.
    """
    available = _available(tokens, sequences, length)
    return _cut(tokens, random.Random(seed).sample(range(available), sequences), length)  # noqa: S311


def evaluation_windows(tokens: Tokens, windows: int, length: int) -> Tensor:
    """[windows, length] int64: the stream's first windows, in order; bos and errors as above."""
    _available(tokens, windows, length)
    return _cut(tokens, range(windows), length)


def overlap(calibration: Tensor, evaluation: Tensor) -> float:
    """The share (0 to 1) of the evaluation's 64-token chunks that calibration has, at any offset.

    calibration [n, length] and evaluation [m, length] int64, as made above. Chunks are compared
    by a 64-bit hash. Anything much above zero means that the evaluation measures memory.
    """
    chunk = min(_CHUNK, calibration.shape[1], evaluation.shape[1])
    seen = np.unique(_chunk_hashes(calibration, chunk, step=1))
    asked = _chunk_hashes(evaluation, chunk, step=chunk)
    return float(np.isin(asked, seen).mean())


def _available(tokens: Tokens, wanted: int, length: int) -> int:
    available = len(tokens.ids) // length
    if available < wanted:
        less = f"at most {counted(available, 'window')} of this length"
        if not available:
            less = f"windows of at most {len(tokens.ids):,} tokens"
        raise RequestError(
            f"{tokens.name} has {counted(len(tokens.ids), 'token')}; "
            f"{counted(wanted, 'window')} of {length:,} need {wanted * length:,}",
            hint=f"give more text, or ask for {less}",
        )
    return available


def _cut(tokens: Tokens, slots: Sequence[int], length: int) -> Tensor:
    rows = np.asarray(slots, dtype=np.int64)[:, None] * length + np.arange(length)
    windows = tokens.ids[rows].astype(np.int64)
    if tokens.first is not None:
        windows[:, 0] = tokens.first
    return torch.from_numpy(windows)


def _chunk_hashes(windows: Tensor, chunk: int, step: int) -> NDArray[np.uint64]:
    """Polynomial hashes (mod 2**64, odd base) of every `step`-th run of `chunk` tokens of a row."""
    ids = windows.numpy().astype(np.uint64) + np.uint64(1)
    starts = ids.shape[1] - chunk + 1
    hashes = np.zeros((ids.shape[0], starts), dtype=np.uint64)
    for offset in range(chunk):
        hashes = hashes * np.uint64(0x9E3779B97F4A7C15) + ids[:, offset : offset + starts]
    return hashes[:, ::step].ravel()
