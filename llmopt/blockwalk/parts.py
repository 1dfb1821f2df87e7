"""The parts of a walk's result: one for each block, and one for the head where it is walked."""

from __future__ import annotations

from collections.abc import Callable

from llmopt.blockwalk import memory
from llmopt.blockwalk.sink import PartResults, Record, Sink
from llmopt.formats.checkpoint import Checkpoint

#: called with (blocks done, blocks in all) after each block and after the head
OnBlock = Callable[[int, int], None]


class Parts:
    """Which parts there are, and which of them the sink has; the head counts as one more block."""

    def __init__(self, checkpoint: Checkpoint, sink: Sink, *, head: bool) -> None:
        self._checkpoint, self._sink = checkpoint, sink
        self.blocks = checkpoint.naming.block_count
        self.total = self.blocks + head

    def linears(self, index: int) -> tuple[tuple[str, ...], ...]:
        """Those of a block, or of the head, those that share an input together."""
        naming = self._checkpoint.naming
        return ((naming.head,),) if index == self.blocks else naming.linears(index)

    def done(self) -> int:
        """How many blocks, and the head after them, have their results in the sink."""
        there = set(self._sink.writer.parts())
        return next((i for i in range(self.total) if self._name(i) not in there), self.total)

    def clear(self) -> None:
        """Forget all results."""
        self._sink.writer.clear()

    def read(self, index: int) -> PartResults:
        """What a finished part holds."""
        return self._sink.read(self._name(index))

    def write(self, index: int, results: PartResults) -> None:
        """Finish a part."""
        self._sink.write(self._name(index), results)
        memory.release()

    def keep_the_rest(self) -> dict[str, Record]:
        """Pass on what no part replaced; returns the records of all parts."""
        replaced: set[str] = set()
        records: dict[str, Record] = {}
        for index in range(self.total):
            names, noted = self._sink.summary(self._name(index))
            replaced |= names
            records |= noted
        for name, tensor in self._checkpoint.stored.items():
            if name not in replaced and name not in self._checkpoint.parts:
                self._sink.keep(name, tensor)
        for module in self._checkpoint.layers:
            if f"{module}.weight" not in replaced:
                # what came quantized goes through the codec: layouts may differ
                layer = self._checkpoint.read_layer(module)
                self._sink.write(f"kept-{module}", PartResults(quantized={module: layer}))
        return records

    def _name(self, index: int) -> str:
        return "head" if index == self.blocks else f"block-{index:05d}"
