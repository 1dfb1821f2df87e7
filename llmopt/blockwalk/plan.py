"""What a walk was asked for, and the bookkeeping that every kind of walk shares."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from llmopt import processor
from llmopt.blockwalk import memory
from llmopt.blockwalk.block import Transform
from llmopt.blockwalk.inlet import Inlet, Operation
from llmopt.blockwalk.sink import PartResults, Sink
from llmopt.formats.checkpoint import Checkpoint

#: called with (blocks done, blocks in all) after each block and after the head
OnBlock = Callable[[int, int], None]


@dataclass(frozen=True, kw_only=True)
class Plan:
    """The arguments of `walk`. The head counts as one more block where it is to be changed."""

    checkpoint: Checkpoint
    tokens: Tensor | None
    operations: Sequence[Operation]
    transforms: Sequence[Transform]
    sink: Sink
    head: bool
    batch_size: int
    true_sequential: bool
    idle: bool
    dtype: torch.dtype
    device: torch.device
    save_every: int
    on_block: OnBlock | None

    @property
    def blocks(self) -> int:
        """How many blocks the model has."""
        return self.checkpoint.naming.block_count

    @property
    def total(self) -> int:
        """How many parts the walk has."""
        return self.blocks + self.head

    def part(self, index: int) -> str:
        """The name of a block's part, or of the head's."""
        return "head" if index == self.blocks else f"block-{index:05d}"

    def inlets(self, index: int) -> Sequence[tuple[str, ...]]:
        """The linears of a block, or of the head, those that share an input together."""
        naming = self.checkpoint.naming
        return ((naming.head,),) if index == self.blocks else naming.linears(index)

    def needs_statistics(self) -> bool:
        """Whether a transform or an operation looks at what flows into the linears."""
        return bool(self.transforms) or any(each.needs_statistics for each in self.operations)

    def apply(self, inlet: Inlet) -> None:
        """All operations on one inlet."""
        for operation in self.operations:
            operation.apply(inlet)

    def settings(self) -> dict[str, Any]:
        """Everything but the operations that the bytes of the result depend on."""
        tokens = self.tokens
        return {
            "tokens": None if tokens is None else _digest(tokens),
            "blocks": self.blocks,
            "head": self.head,
            "batch_size": self.batch_size,
            "true_sequential": self.true_sequential,
            "dtype": str(self.dtype),
            "device": str(self.device),
            "torch": torch.__version__,
            "cpu": processor.identity(),
        }

    def done(self) -> int:
        """How many blocks, and the head after them, have their results in the sink."""
        parts = set(self.sink.writer.parts())
        return next((i for i in range(self.total) if self.part(i) not in parts), self.total)

    def write(self, index: int, results: PartResults) -> None:
        """Finish a block's part."""
        self.sink.write(self.part(index), results)
        memory.release()

    def tell(self, index: int) -> None:
        """Report that a block, and all that has to be saved about it, is done."""
        if self.on_block is not None:
            self.on_block(index + 1, self.total)

    def keep_the_rest(self) -> dict[str, Any]:
        """Pass on what no part replaced; returns the records of all parts."""
        replaced: set[str] = set()
        records: dict[str, Any] = {}
        for index in range(self.total):
            names, noted = self.sink.summary(self.part(index))
            replaced |= names
            records |= noted
        for name, tensor in self.checkpoint.stored.items():
            if name not in replaced and name not in self.checkpoint.parts:
                self.sink.keep(name, tensor)
        for module in self.checkpoint.layers:
            if f"{module}.weight" not in replaced:
                # what came quantized goes through the codec: layouts may differ
                layer = self.checkpoint.read_layer(module)
                self.sink.write(f"kept-{module}", PartResults(quantized={module: layer}))
        return records


def _digest(tokens: Tensor) -> str:
    return hashlib.sha256(tokens.cpu().contiguous().numpy().tobytes()).hexdigest()
