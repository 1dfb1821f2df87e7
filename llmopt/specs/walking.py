"""Sizes that a walk keeps to, and that plans count with. No torch."""

from __future__ import annotations

#: activations are saved every so many blocks
SAVE_EVERY = 8
#: inputs of modules' ends that are kept at most: in bytes of the activations, and in any case
KEPT_SHARE, KEPT_LITTLE = 2, 256 << 20
#: a Hessian is summed by as many rows, each from its diagonal block on: of fewer columns than that,
#: and of more
SPLIT_COLUMNS, SPLIT_ROWS = 2048, (128, 512)
#: from more columns than this, a matrix is factored in place, in blocks of as many
FACTOR_BLOCK = 2048
#: rows of a Hessian that are permuted at once
PERMUTED_ROWS = 512
#: slices of all models' heads: bytes in float32, tokens, and positions whose logits are computed
HEAD_BYTES, HEAD_TOKENS, HEAD_POSITIONS = 128 << 20, 16384, 512
#: weights that a thread solves at once, and as few and many rows of them
SOLVED_WEIGHTS, FEWEST_ROWS, MOST_ROWS = 1 << 22, 256, 1024


def rows_at_once(cols: int) -> int:
    """Rows of a weight of so many columns that a thread solves at once.

    What a block of their columns takes stays in a cache, and is still worth the calls it takes.
    """
    return min(max(SOLVED_WEIGHTS // cols, FEWEST_ROWS), MOST_ROWS)


def split_rows(cols: int) -> int:
    """Rows of a Hessian of so many columns that are summed at once."""
    return SPLIT_ROWS[cols >= SPLIT_COLUMNS]
