"""How far a changed model is from the original on held-out windows, a block at a time."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from llmopt.blockwalk.activations import Activations
from llmopt.blockwalk.stream import BlockStream
from llmopt.blockwalk.weights import LiveWeights
from llmopt.formats.checkpoint import Checkpoint

#: a linear's name -> its changed weight float32 [out, in], None where it stays as it is
ChangedWeight = Callable[[str], Tensor | None]
#: log probabilities float32 [positions, vocabulary] of both -> divergence float64 [positions]
Divergence = Callable[[Tensor, Tensor], Tensor]


class HeldOut:
    """The original's last hidden states for some windows, to compare changed models with.

    In memory are one block, hidden states [windows, length, width] of both models, and the logits
    of one window from both; a measurement reads every weight once.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        windows: Tensor,
        divergence: Divergence,
        *,
        batch_size: int = 2,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> None:
        self._divergence = divergence
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
        found, hidden = [], self._last_hidden(changed)
        with self._stream.ending(head=True):
            for row in (slice(place, place + 1) for place in range(hidden.shape[0])):
                pair = [self._log_probabilities(each[row]) for each in (self._original, hidden)]
                found.append(float(self._divergence(*pair).mean()))
        return found

    def _log_probabilities(self, hidden: Tensor) -> Tensor:
        skeleton = self._stream.skeleton
        finished = skeleton.finish(hidden.to(self._stream.device))
        return skeleton.logits(finished)[0, :-1].float().log_softmax(-1)

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
