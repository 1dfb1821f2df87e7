"""The pass that folds scales before weights are rounded, as the block walk runs it."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from llmopt.blockwalk import LiveBlock
from llmopt.grids.base import GridOptions
from llmopt.linalg import InputMoments, InputStatistics
from llmopt.methods.transform.awq import Reader, search_scale
from llmopt.specs.folds import Pair

#: the grid that a linear is going to be rounded to; None where it stays as it is
OptionsOf = Callable[[str], GridOptions | None]
#: what a scale of inputs is judged by, and what it is made of
_WANTED = InputMoments(hessian=True, mean_abs=True)


class Awq:
    """Scales of inputs, folded into the op before them and into all that reads its output."""

    changes = True

    def __init__(self, options_of: OptionsOf, fixed: frozenset[str] = frozenset()) -> None:
        """`fixed` are linears that no scale may move into or out of: they stay as they came."""
        self._options_of, self._fixed = options_of, fixed

    def apply(self, block: LiveBlock) -> None:
        """Fold every pair of the block whose shapes match, where a scale lowers the error."""
        pairs = list(block.pairs())
        statistics = block.statistics(_WANTED) if pairs else {}
        for pair in pairs:
            if not self._fixed.isdisjoint((pair.source, *pair.readers)):
                continue
            readers = self._readers(block, pair, statistics)
            if not readers or not _matches(block, pair):
                continue
            scale = search_scale(readers)
            if bool((scale == 1).all()):
                continue
            scale = (_fold_linear if pair.linear else _fold_norm)(block, pair, scale)
            for name in pair.readers:
                block.replace(name, block.weight(name) * scale)
                block.record(f"{name}.weight", {"transform": "awq"})
            low, high = (float(f"{float(bound):.6g}") for bound in scale.aminmax())
            record = {"transform": "awq", "into": list(pair.readers), "scale": [low, high]}
            block.record(f"{pair.source}.weight", record)

    def _readers(
        self, block: LiveBlock, pair: Pair, statistics: Mapping[str, InputStatistics]
    ) -> list[Reader]:
        """What will be rounded of what reads a source, by statistics and grid."""
        together: dict[tuple[int, GridOptions], list[str]] = {}
        for name in pair.readers:
            options = self._options_of(name)
            if options is not None and name in statistics:
                together.setdefault((id(statistics[name]), options), []).append(name)
        return [
            Reader(torch.cat([block.weight(n) for n in names]), statistics[names[0]], options)
            for (_, options), names in together.items()
        ]


def _matches(block: LiveBlock, pair: Pair) -> bool:
    """Whether each output of the source is one input of each reader: not so with shared values."""
    outputs = block.weight(pair.source).shape[0] if pair.linear else _stored(block, pair).shape[0]
    return all(block.weight(name).shape[1] == outputs for name in pair.readers)


def _stored(block: LiveBlock, pair: Pair) -> Tensor:
    weight = block.tensor(f"{pair.source}.weight")
    assert weight is not None
    return weight


def _fold_linear(block: LiveBlock, pair: Pair, scale: Tensor) -> Tensor:
    """Divide a linear's outputs by the scale; returns what they were divided by."""
    block.replace(pair.source, block.weight(pair.source) / scale.unsqueeze(1))
    _fold_bias(block, pair, scale)
    return scale


def _fold_norm(block: LiveBlock, pair: Pair, scale: Tensor) -> Tensor:
    """Divide a norm's gains by the scale; returns what their rounded values were divided by.

    So the weights that follow make up for the rounding of the gains.
    """
    offset = pair.offset
    gain = _stored(block, pair) + offset
    rounded = block.replace_tensor(f"{pair.source}.weight", gain / scale - offset) + offset
    exact = torch.where(gain * rounded > 0, gain / rounded, torch.ones_like(gain))
    _fold_bias(block, pair, exact)
    return exact


def _fold_bias(block: LiveBlock, pair: Pair, scale: Tensor) -> None:
    bias = block.tensor(f"{pair.source}.bias")
    if bias is not None:
        block.replace_tensor(f"{pair.source}.bias", bias / scale)
