"""What every runtime provides: a model that is ready to be asked."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from torch import Tensor


class Engine(Protocol):
    """A loaded model. `module.load(folder, ...)` of a RuntimeSpec returns one."""

    @property
    def vocabulary(self) -> int:
        """How many tokens the logits cover."""

    @property
    def context(self) -> int | None:
        """The most tokens that fit, None where the model sets no limit."""

    @property
    def weight_bytes(self) -> int:
        """Bytes that the weights take in memory now, each counted once."""

    def logits(self, tokens: Tensor) -> Tensor:
        """tokens int64 [batch, length] -> logits float32 [batch, length, vocabulary].

        The function that the artifact's stored numbers define; quality is measured on it.
        """

    def generate(
        self,
        prompt: list[int],
        max_new_tokens: int,
        *,
        temperature: float = 0.0,
        seed: int = 0,
        ignore_end: bool = False,
    ) -> Iterator[int]:
        """Stream new tokens, as fast as the engine can.

        Temperature 0 takes the most likely token. The model's end tokens end the stream and are
        not part of it, unless `ignore_end`; so does a full context.
        """
