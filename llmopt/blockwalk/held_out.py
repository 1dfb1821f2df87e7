"""How far a changed model is from the original on held-out windows, a block at a time."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from llmopt.blockwalk.inlet import LiveWeights
from llmopt.blockwalk.sink import PartResults
from llmopt.blockwalk.skeleton import Skeleton
from llmopt.formats.checkpoint import Checkpoint

#: a linear's name -> its changed weight float32 [out, in], None where it stays as it is
Change = Callable[[str], Tensor | None]
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
        self._checkpoint, self._divergence = checkpoint, divergence
        self._batches = torch.split(windows, batch_size)
        self._skeleton = Skeleton(checkpoint, dtype=dtype, device=torch.device(device))
        self._weights = LiveWeights(checkpoint, PartResults())
        with torch.no_grad(), self._skeleton.surroundings(self._weights):
            self._embedded = [self._skeleton.embed(batch) for batch in self._batches]
        self._original = self._last_hidden(lambda _: None)

    def measure(self, change: Change) -> list[float]:
        """The mean KL(original || changed) of each window, in nats a position.

        The last position is left out: what it predicts is not in the window.
        """
        changed = self._last_hidden(change)
        found = []
        skeleton, weights = self._skeleton, self._weights
        with (
            torch.no_grad(),
            skeleton.surroundings(weights, embedding=False),
            skeleton.head(weights),
        ):
            for ours, theirs in zip(torch.cat(self._original), torch.cat(changed), strict=True):
                pair = (self._log_probabilities(ours), self._log_probabilities(theirs))
                found.append(float(self._divergence(*pair).mean()))
        return found

    def _log_probabilities(self, hidden: Tensor) -> Tensor:
        logits = self._skeleton.logits(self._skeleton.finish(hidden.unsqueeze(0)))
        return logits[0, :-1].float().log_softmax(-1)

    @torch.no_grad()
    def _last_hidden(self, change: Change) -> list[Tensor]:
        hidden = list(self._embedded)
        for index in range(self._checkpoint.naming.block_count):
            self._skeleton.fill(index, self._weights)
            for names in self._checkpoint.naming.linears(index):
                for name in names:
                    weight = change(name)
                    if weight is not None:
                        self._skeleton.assign(name, self._weights.oriented(name, weight))
            hidden = [self._skeleton.call(index, rows) for rows in hidden]
            self._skeleton.drop(index)
        return hidden
