"""What flows through a live block: activations where there are some, and statistics of them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress

import torch
from torch import Tensor

from llmopt.blockwalk.activations import Activations, Batch
from llmopt.blockwalk.calls import Seen
from llmopt.blockwalk.experts import Collected, Names, Pools
from llmopt.blockwalk.shortcuts import Shortcuts
from llmopt.blockwalk.stream import BlockStream
from llmopt.blockwalk.weights import LiveWeights
from llmopt.errors import LlmoptError
from llmopt.linalg import InputMoments, InputStatistics, accumulated


class _Enough(Exception):
    pass


class NoFlow:
    """Of a walk without data: passes see weights alone."""

    def __init__(self, linears: Sequence[Names], device: torch.device) -> None:
        self._linears, self.device = linears, device

    def collect(
        self,
        wanted: InputMoments,  # noqa: ARG002
        *,
        sequential: bool,  # noqa: ARG002
        through: bool,  # noqa: ARG002
    ) -> Iterator[list[Collected]]:
        """No statistics."""
        yield [Collected(names=names, statistics=None) for names in self._linears]

    def put(self, name: str, *, in_turn: bool) -> None:
        """Nothing is computed."""

    def inputs(self) -> Iterator[Tensor]:
        """LlmoptError, as for the others."""
        raise LlmoptError(f"nothing flows through {self._linears[0][0]} in this walk")

    def forward(self, hidden: Tensor, weights: Mapping[str, Tensor]) -> Tensor:  # noqa: ARG002
        """LlmoptError."""
        raise LlmoptError(f"nothing is computed with {self._linears[0][0]} in this walk")

    def targets(self) -> Iterator[Tensor]:
        """LlmoptError."""
        return self.inputs()


class HeadFlow(NoFlow):
    """What comes out of the last norm; logits are not computed."""

    def __init__(
        self, stream: BlockStream, linears: Sequence[Names], activations: Activations
    ) -> None:
        super().__init__(linears, stream.device)
        self._stream, self._activations = stream, activations

    def collect(
        self,
        wanted: InputMoments,
        *,
        sequential: bool,  # noqa: ARG002
        through: bool,  # noqa: ARG002
    ) -> Iterator[list[Collected]]:
        """Statistics of the head's input."""
        statistics: InputStatistics | None = None
        for hidden in self.inputs():
            statistics = accumulated(statistics, hidden, wanted)
        yield [Collected(names=self._linears[0], statistics=statistics)]

    def inputs(self) -> Iterator[Tensor]:
        """What flows into the head."""
        with self._stream.ending():
            for rows in self._stream.rows(self._activations):
                yield self._stream.skeleton.finish(rows)


class BlockFlow:
    """The activations that flow into a filled block, until `advance` replaces them.

    `known` spares what the block would compute again.
    """

    def __init__(
        self,
        stream: BlockStream,
        index: int,
        activations: Activations,
        weights: LiveWeights,
        known: Shortcuts,
    ) -> None:
        self.device = stream.device
        self._stream, self._index, self._activations = stream, index, activations
        self._weights, self._known = weights, known
        self._targets: Activations | None = None
        self._advanced = False

    def collect(
        self, wanted: InputMoments, *, sequential: bool, through: bool
    ) -> Iterator[list[Collected]]:
        """Push the activations as far as the last of the inlets that are asked for together."""
        naming, skeleton = self._stream.checkpoint.naming, self._stream.skeleton
        pools, size = Pools(naming, self._index), skeleton.nbytes(self._index)

        def needed(name: str) -> int:
            return wanted.nbytes(skeleton.width(name))

        found = (
            naming.rounds_within(self._index, needed, size)
            if sequential
            else [list(naming.linears(self._index))]
        )
        for inlets in found:
            self._known.forget(inlets)
            seen = self._observed(inlets, wanted, note=sequential, through=through)
            yield list(pools.sort(seen, skeleton.width))

    def put(self, name: str, *, in_turn: bool) -> None:
        """Compute with another value, and with nothing that was known if it comes out of turn."""
        self._stream.skeleton.put(name, self._weights.replaced(name))
        if in_turn:
            self._known.forget([(name.removesuffix(".weight"),)])
        else:
            self._known.clear()

    def inputs(self) -> Iterator[Tensor]:
        """What flows into the block."""
        self._check()
        yield from self._stream.rows(self._activations)

    def forward(self, hidden: Tensor, weights: Mapping[str, Tensor]) -> Tensor:
        """The block's output for a batch of `inputs`."""
        self._known.clear()
        return self._stream.skeleton.call(self._index, hidden, weights)

    def targets(self) -> Iterator[Tensor]:
        """Computed when they are first asked for, with the checkpoint's weights."""
        self._check()
        if self._targets is None:
            self._targets = self._original_outputs()
        yield from self._stream.rows(self._targets)

    def advance(self) -> None:
        """Replace the activations by what comes out of the block, if that is still to be done."""
        if not self._advanced:
            for batch, rows in self._rows():
                self._activations[batch] = self._stream.skeleton.call(self._index, rows)
            self._advanced = True

    def _original_outputs(self) -> Activations:
        stream, given = self._stream, self._activations
        found = stream.room.make("targets", given.shape, given.dtype)
        self._known.clear()
        if not self._weights.changed:
            stream.advance(self._index, given, found)
            return found
        stream.skeleton.fill(self._index, LiveWeights(self._weights.checkpoint))
        stream.advance(self._index, given, found)
        stream.skeleton.fill(self._index, self._weights)
        return found

    def _observed(
        self, inlets: Sequence[Names], wanted: InputMoments, *, note: bool, through: bool
    ) -> Iterator[tuple[Names, InputStatistics | None]]:
        """What flows into each inlet; `note` the inputs of linears that may end their modules."""
        self._check()
        found: dict[str, InputStatistics] = {}
        pooled = self._stream.checkpoint.naming.pool_of(inlets[-1][0]) is not None

        def observe(names: Names, *, last: bool) -> Seen:
            first = names[0]

            def show(x: Tensor) -> None:
                found[first] = accumulated(found.get(first), x, wanted)
                if note and len(names) == 1 and not pooled:
                    self._known.note(first, x)
                if last:
                    raise _Enough

            return show

        # no batch has to reach the last expert
        ends = inlets[-1] if not pooled and not through else None
        shown = {names[0]: observe(names, last=names is ends) for names in inlets}
        with self._stream.skeleton.watched(shown):
            if through:
                self.advance()
            else:
                self._reach()
        return ((names, found.pop(names[0], None)) for names in inlets)

    def _reach(self) -> None:
        """Push the activations into the block until a hook has seen enough."""
        for _, rows in self._rows():
            with suppress(_Enough):
                self._stream.skeleton.call(self._index, rows)

    def _rows(self) -> Iterator[tuple[Batch, Tensor]]:
        """Each batch and its activations, with what is known of it."""
        stream = self._stream
        for batch, rows in zip(stream.batches(), stream.rows(self._activations), strict=True):
            with self._known.batch(batch):
                yield batch, rows

    def _check(self) -> None:
        if self._advanced:
            raise LlmoptError("a pass that changes nothing asks once what flows into a block")
