"""The blocks of a model as a stream: each is filled, called and dropped before the next."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager
from functools import cached_property

import torch
from torch import Tensor

from llmopt.blockwalk import memory
from llmopt.blockwalk.activations import Activations, Batch, Room
from llmopt.blockwalk.skeleton import Skeleton
from llmopt.blockwalk.weights import LiveWeights
from llmopt.formats.checkpoint import Checkpoint
from llmopt.formats.safetensors import announce
from llmopt.formats.tensor_header import TensorHeader


class BlockStream:
    """What every walk over a decoder does, whatever it does it for.

    tokens: int64 [sequences, length]. Activations are [sequences, length, width] in `room`, by
    default the memory of the processor; `batch_size` sequences at a time are computed with on
    `device`, where the weights of one block lie at most.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        tokens: Tensor,
        *,
        batch_size: int,
        dtype: torch.dtype,
        device: torch.device,
        room: Room | None = None,
    ) -> None:
        self.checkpoint, self.device, self.room = checkpoint, device, room or Room()
        self.blocks = checkpoint.naming.block_count
        self.skeleton = Skeleton(checkpoint, dtype=dtype, device=device)
        self._batches = torch.split(tokens, batch_size)
        self._ids = torch.unique(tokens)
        self._source = LiveWeights(checkpoint)

    def embed(self) -> Activations:
        """What flows into the first block."""
        activations: Activations = torch.empty(0)
        with self.skeleton.surroundings(self._source, self._ids):
            for index, (rows, batch) in enumerate(zip(self.batches(), self._batches, strict=True)):
                hidden = self.skeleton.embed(batch, index)
                if rows.start == 0:
                    sequences = sum(len(each) for each in self._batches)
                    shape = (sequences, *hidden.shape[1:])
                    activations = self.room.make("activations", shape, hidden.dtype)
                activations[rows] = hidden
        memory.release()
        return activations

    def learn_calls(self) -> None:
        """See how blocks are called: where `embed` is not needed."""
        with self.skeleton.surroundings(self._source, self._ids):
            for index, batch in enumerate(self._batches):
                self.skeleton.embed(batch, index)
        memory.release()

    @contextmanager
    def filled(self, index: int, weights: LiveWeights | None = None) -> Iterator[None]:
        """Hold a block's weights: these, or the checkpoint's; the next one's are read meanwhile."""
        self.skeleton.fill(index, weights or self._source)
        announce(self._headers.get(index + 1, []))
        memory.release()
        try:
            yield
        finally:
            self.skeleton.drop(index)

    @cached_property
    def _headers(self) -> dict[int | None, list[TensorHeader]]:
        """Where the tensors of each block lie."""
        found: dict[int | None, list[TensorHeader]] = defaultdict(list)
        for name, tensor in self.checkpoint.stored.items():
            found[self.checkpoint.naming.block_of(name)].append(tensor.header)
        return found

    def batches(self) -> Iterator[Batch]:
        """The sequences of each batch."""
        start = 0
        for batch in self._batches:
            yield slice(start, start + len(batch))
            start += len(batch)

    def rows(self, activations: Activations) -> Iterator[Tensor]:
        """The activations of each batch, where they are computed with; they are only read.

        What the skeleton is called for until the next is asked for is called for this batch.
        """
        for index, batch in enumerate(self.batches()):
            self.skeleton.turn_to(index)
            yield activations[batch].to(self.device)

    def advance(
        self, index: int, activations: Activations, into: Activations | None = None
    ) -> None:
        """Replace the activations, or those of `into`, by what comes out of a filled block."""
        target = activations if into is None else into
        for batch, rows in zip(self.batches(), self.rows(activations), strict=True):
            target[batch] = self.skeleton.call(index, rows)

    @property
    def resumable(self) -> bool:
        """Whether what flows between two blocks is all that later ones need, once calls are known.

        Where blocks leave something for later ones, a walk begins with the first again.
        """
        return not self.skeleton.carries_state

    def head_rows(self, rows: Mapping[str, Tensor]) -> AbstractContextManager[None]:
        """Hold some rows of the head's tensors, for the skeleton's `logits` of these tokens."""
        return self.skeleton.head_rows(rows, self._source)

    @contextmanager
    def ending(self, *, head: bool = False) -> Iterator[None]:
        """Hold what comes after the last block, for the skeleton's `finish`, and for `logits`."""
        with ExitStack() as stack:
            stack.enter_context(self.skeleton.surroundings(self._source))
            if head:
                stack.enter_context(self.skeleton.head(self._source))
            yield
