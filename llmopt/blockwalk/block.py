"""What a transform sees of a model: a block as a whole, before any of its linears is changed."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any, Protocol

import torch
from torch import Tensor

from llmopt.blockwalk.inlet import LiveWeights, narrowed
from llmopt.formats.checkpoint import Checkpoint
from llmopt.linalg import InputStatistics
from llmopt.specs.folds import Pair, pairs


class Block:
    """One decoder block. `statistics` are those of each linear's input, by the linear's name.

    All weights are float32 and stay as fine as they are given until the block is done; then what
    no operation has quantized is rounded to the checkpoint's dtype.
    """

    def __init__(
        self,
        index: int,
        checkpoint: Checkpoint,
        weights: LiveWeights,
        statistics: Mapping[str, InputStatistics],
        on_change: Callable[[str, Tensor], None],
    ) -> None:
        self.index, self.statistics = index, statistics
        self._checkpoint, self._weights, self._on_change = checkpoint, weights, on_change

    @property
    def norm_gain_offset(self) -> float:
        """A norm of this model scales by this plus its weight."""
        return self._checkpoint.family.norm_gain_offset

    def pairs(self) -> Iterator[Pair]:
        """Where a scale of linears' inputs can be folded into what comes before them."""
        naming, stored = self._checkpoint.naming, [*self._checkpoint.names]
        config = self._checkpoint.family.language_config(self._checkpoint.config)
        return pairs(naming, self.index, config, dict.fromkeys(stored))

    def linear(self, name: str) -> Tensor:
        """The present weight of a linear, [out, in]."""
        return self._weights.oriented(name, self._weights.read(f"{name}.weight")).float()

    def set_linear(self, name: str, weight: Tensor) -> None:
        """Give a linear another weight [out, in]."""
        self._set(f"{name}.weight", self._weights.oriented(name, weight))

    def read(self, name: str) -> Tensor | None:
        """Another tensor as float32, None where the block has none of this name."""
        return self._weights.read(name).float() if self._weights.has(name) else None

    def set_stored(self, name: str, value: Tensor) -> Tensor:
        """Give another tensor a value, rounded to the checkpoint's dtype; returns it as float32."""
        rounded = narrowed(name, value, self._checkpoint.stored_dtype(name)).to(torch.float32)
        self._set(name, rounded)
        return rounded

    def record(self, name: str, what: Mapping[str, Any]) -> None:
        """Note for the ledger what was done to a tensor."""
        self._weights.results.records[name] = dict(what)

    def _set(self, name: str, value: Tensor) -> None:
        self._weights.hold(name, value)
        self._on_change(name, value)


class Transform(Protocol):
    """Something done to a whole block that leaves its function as it is."""

    def apply(self, block: Block) -> None:
        """Read the block's weights and statistics, and replace what should change."""
