"""How much the error of each weight counts in a search."""

from __future__ import annotations

from torch import Tensor

# What no input reaches counts so much of the mean: too little to cost what is reached anything.
_FLOOR = 1e-6


def natural(x: Tensor, block: int | tuple[int, ...]) -> Tensor:
    """What weighs errors where there is no importance: sqrt(mean square of the block + x^2).

    block: the dimensions of x that a block extends over. Large weights count more, as in ggml's
    searches (`sigma2` in ggml-quants.c); minimising the plain error there is known to hurt models.
    """
    squares = x * x
    return (squares + squares.mean(block, keepdim=True)).sqrt_()


def floored(importance: Tensor) -> Tensor | None:
    """importance [cols] over its mean, nowhere 0, so that what no input reached is encoded, too.

    None where it is zero everywhere, and says nothing.
    """
    mean = importance.mean()
    return (importance / mean).clamp_min(_FLOOR) if mean > 0 else None
