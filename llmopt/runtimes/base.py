"""What every runtime provides: a model that is ready to be asked."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Sampling:
    """How a continuation is chosen, in transformers' terms; nothing is cut off where None.

    At temperature 0 the most probable token is taken, and top_k, top_p and min_p choose nothing.
    With several `beams` the most probable of so many continuations is: nothing is drawn then.
    """

    temperature: float = 0.0
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None
    repetition_penalty: float = 1.0
    beams: int = 1
    seed: int = 0


#: always the most probable token
GREEDY = Sampling()


class Engine(Protocol):
    """A loaded model."""

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
        sampling: Sampling = GREEDY,
        ignore_end: bool = False,
    ) -> Iterator[int]:
        """Stream new tokens, as fast as the engine can.

        The model's end tokens end the stream and are not part of it, unless `ignore_end`; so does
        a full context. RequestError at once for a prompt that the model cannot take, and for beams
        where the runtime has none.
        """


class Runtime(Protocol):
    """What the module of a RuntimeSpec provides."""

    def load(self, folder: Path, /, *, device: str = ...) -> Engine:
        """The model in a folder; a runtime that chooses its dtype takes `dtype`, too."""
