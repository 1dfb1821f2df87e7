"""The blocks of a model as a stream: each is filled, called and dropped before the next."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import torch
from torch import Tensor

from llmopt.blockwalk import memory
from llmopt.blockwalk.skeleton import Skeleton
from llmopt.blockwalk.weights import LiveWeights
from llmopt.formats.checkpoint import Checkpoint


class BlockStream:
    """What every walk over a decoder does, whatever it does it for.

    tokens: int64 [sequences, length]. Activations are [sequences, length, width] in the memory of
    the processor; `batch_size` sequences at a time are computed with on `device`, where the
    weights of one block lie at most.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        tokens: Tensor,
        *,
        batch_size: int,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        self.checkpoint, self.device = checkpoint, device
        self.blocks = checkpoint.naming.block_count
        self.skeleton = Skeleton(checkpoint, dtype=dtype, device=device)
        self._batches = torch.split(tokens, batch_size)
        self._batch_size = batch_size
        self._source = LiveWeights(checkpoint)

    def embed(self) -> Tensor:
        """What flows into the first block."""
        activations, place = torch.empty(0), 0
        with self.skeleton.surroundings(self._source):
            for batch in self._batches:
                hidden = self.skeleton.embed(batch)
                if place == 0:
                    sequences = sum(len(each) for each in self._batches)
                    activations = torch.empty(sequences, *hidden.shape[1:], dtype=hidden.dtype)
                activations[place : place + len(hidden)] = hidden
                place += len(hidden)
        memory.release()
        return activations

    def learn_calls(self) -> None:
        """See how blocks are called, for each size of batch: where `embed` is not needed."""
        with self.skeleton.surroundings(self._source):
            for batch in {len(batch): batch for batch in self._batches}.values():
                self.skeleton.embed(batch)
        memory.release()

    @contextmanager
    def filled(self, index: int, weights: LiveWeights | None = None) -> Iterator[None]:
        """Hold a block's weights: these, or the checkpoint's."""
        self.skeleton.fill(index, weights or self._source)
        memory.release()
        try:
            yield
        finally:
            self.skeleton.drop(index)

    def rows(self, activations: Tensor) -> Iterator[Tensor]:
        """The activations of each batch, to be read or overwritten."""
        yield from torch.split(activations, self._batch_size)

    def advance(self, index: int, activations: Tensor) -> None:
        """Replace the activations by what comes out of a filled block."""
        for rows in self.rows(activations):
            rows.copy_(self.skeleton.call(index, rows.to(self.device)))

    @contextmanager
    def ending(self, *, head: bool = False) -> Iterator[None]:
        """Hold what comes after the last block, for the skeleton's `finish`, and for `logits`."""
        with ExitStack() as stack:
            stack.enter_context(self.skeleton.surroundings(self._source, embedding=False))
            if head:
                stack.enter_context(self.skeleton.head(self._source))
            yield
