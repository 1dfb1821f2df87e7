"""How far a changed model is from the original on held-out windows, a block at a time."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from llmopt.blockwalk.activations import Activations, Batch
from llmopt.blockwalk.head import HeadRows, token_runs
from llmopt.blockwalk.stream import BlockStream
from llmopt.blockwalk.weights import LiveWeights
from llmopt.evaluate.positions import SideBySide
from llmopt.formats.checkpoint import Checkpoint

#: a linear's name -> its changed weight float32 [out, in], None where it stays as it is
ChangedWeight = Callable[[str], Tensor | None]


class HeldOut:
    """The original's last hidden states for some windows, to compare changed models with.

    In memory are one block, hidden states [windows, length, width] of both models, and a slice of
    the head; a measurement reads every weight once.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        windows: Tensor,
        *,
        batch_size: int = 2,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> None:
        self._windows, self._head = windows, HeadRows(checkpoint)
        self._stream = BlockStream(
            checkpoint, windows, batch_size=batch_size, dtype=dtype, device=torch.device(device)
        )
        with torch.no_grad():
            self._embedded = self._stream.embed()
            self._original = self._last_hidden(lambda _: None)

    @torch.no_grad()
    def measure(self, changed: ChangedWeight) -> list[float]:
        """The mean KL(original || changed) of each window, in nats a position.

        The last position is left out: what it predicts is not in the window.
        """
        hidden, skeleton = self._last_hidden(changed), self._stream.skeleton
        found = SideBySide(self._windows[:, 1:].reshape(-1).to(self._stream.device), 1)
        with self._stream.ending():
            for tokens in token_runs(*skeleton.head_shape):
                with self._stream.head_rows(self._head.read(tokens.start, tokens.stop)):
                    self._add(found, tokens.start, hidden)
        return found.divergence(0).view(len(self._windows), -1).mean(1).tolist()

    def _add(self, found: SideBySide, first: int, hidden: Activations) -> None:
        """Take the logits of the tokens whose rows the head has, from `first` on."""
        skeleton, device = self._stream.skeleton, self._stream.device
        count, length = self._windows.shape
        for window in range(count):
            row: Batch = slice(window, window + 1)
            states = (each[row].to(device) for each in (self._original, hidden))
            pair = [skeleton.logits(skeleton.finish(each))[0, :-1] for each in states]
            found.add(window * (length - 1), first, pair)

    def _last_hidden(self, changed: ChangedWeight) -> Activations:
        stream, given = self._stream, self._embedded
        hidden = stream.room.make("hidden", given.shape, given.dtype)
        for index in range(stream.blocks):
            weights = LiveWeights(stream.checkpoint)
            with stream.filled(index, weights):
                for names in stream.checkpoint.naming.linears(index):
                    for name in names:
                        weight = changed(name)
                        if weight is not None:
                            stream.skeleton.put(f"{name}.weight", weights.oriented(name, weight))
                stream.advance(index, given, hidden)
            given = hidden
        return hidden
