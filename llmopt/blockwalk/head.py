"""The head of a checkpoint, some of its rows at a time."""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor

from llmopt.formats.checkpoint import Checkpoint
from llmopt.formats.codec import decode
from llmopt.formats.safetensors import read_rows
from llmopt.specs.walking import HEAD_BYTES, HEAD_TOKENS


class HeadRows:
    """Reads rows of the head's weight, one for each token of the vocabulary.

    Nothing is in memory between two reads, but for the codes of a head that is quantized.
    """

    def __init__(self, checkpoint: Checkpoint) -> None:
        name = checkpoint.naming.head
        self._bias = checkpoint.stored.get(f"{name}.bias")
        self._layer = checkpoint.read_layer(name) if name in checkpoint.layers else None
        if self._layer is None and checkpoint.tied:
            name = checkpoint.naming.embedding
        self._weight = checkpoint.stored.get(f"{name}.weight")

    def read(self, start: int, stop: int) -> dict[str, Tensor]:
        """The tensors of a linear with some of the outputs, by their names in it."""
        if self._layer is not None:
            found = {"weight": decode(self._layer, slice(start, stop))}
        else:
            assert self._weight is not None
            found = {"weight": read_rows(self._weight.header, start, stop)}
        if self._bias is not None:
            found["bias"] = self._bias.read()[start:stop]
        return found


def token_runs(vocabulary: int, width: int) -> Iterator[range]:
    """Runs of tokens whose rows, `width` numbers a token in all heads, are held together."""
    step = min(HEAD_TOKENS, max(1, HEAD_BYTES // (4 * width)))
    return (range(start, min(start + step, vocabulary)) for start in range(0, vocabulary, step))
