"""What a block is called with beside hidden states: masks, positions, and what else a model passes.

Most of it is the same for all batches of one size, and is held once. What depends on the tokens
(embeddings for each layer) and what blocks write into (keys and values that later blocks share) is
a batch's own.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from llmopt.errors import LlmoptError

_HIDDEN = "hidden_states"


@dataclass(frozen=True)
class Handed:
    """Stands for what the block before returned beside hidden states, in this place."""

    place: int


@dataclass(frozen=True)
class BlockCall:
    """The arguments of a block after the hidden states; `named`: those are given by name."""

    arguments: tuple[object, ...]
    keywords: Mapping[str, object]
    named: bool = False

    @classmethod
    def of(
        cls, arguments: tuple[object, ...], keywords: Mapping[str, object]
    ) -> tuple[Tensor, BlockCall]:
        """Hidden states and the call, of what a block was called with."""
        if arguments:
            hidden, call = arguments[0], cls(arguments[1:], keywords)
        else:
            rest = {name: value for name, value in keywords.items() if name != _HIDDEN}
            hidden, call = keywords.get(_HIDDEN), cls((), rest, named=True)
        if not isinstance(hidden, Tensor):
            raise LlmoptError("a block is called with something else than hidden states")
        return hidden, call

    def given(
        self, hidden: Tensor, handed: Sequence[object] = ()
    ) -> tuple[tuple[object, ...], dict[str, object]]:
        """What to call the block with; `handed`: what the one before returned."""

        def real(value: object) -> object:
            if isinstance(value, Handed):
                return handed[value.place] if value.place < len(handed) else None
            return value

        keywords = {name: real(value) for name, value in self.keywords.items()}
        if self.named:
            return (), {_HIDDEN: hidden, **keywords}
        return (hidden, *map(real, self.arguments)), keywords


#: what stands in for a block: (index, hidden states, its other arguments) -> hidden states
StandIn = Callable[[int, Tensor, BlockCall], Tensor]
#: is shown what flows into a linear
Seen = Callable[[Tensor], None]


class Calls:
    """Of all blocks, by batch."""

    def __init__(self) -> None:
        self._batches: dict[int, list[BlockCall]] = {}
        self._first: dict[int, int] = {}
        self._handed: dict[tuple[int, int], Sequence[object]] = {}
        self.carry_state = False

    def note(self, batch: int, size: int, calls: list[BlockCall]) -> None:
        """How blocks were called for a batch of this size; what is as in an earlier one is shared.

        Shared is what is equal, tensors by value; an object that blocks may write to never is.
        """
        same: dict[tuple[int, int], bool] = {}
        first = self._batches.get(self._first.setdefault(size, batch))
        if first is not None:
            calls = [_sharing(old, new, same) for old, new in zip(first, calls, strict=True)]
        self._batches[batch] = calls
        self.carry_state |= any(_is_written_to(each) for call in calls for each in _values(call))

    def of(self, batch: int, block: int) -> tuple[BlockCall, Sequence[object]]:
        """How a block is called for a batch, and what the one before has handed to it."""
        return self._batches[batch][block], self._handed.get((batch, block), ())

    def hand(self, batch: int, block: int, values: Sequence[object]) -> None:
        """Keep what a block returned beside hidden states, if the next one takes any of it."""
        calls = self._batches[batch]
        after = calls[block + 1] if block + 1 < len(calls) else None
        if after and any(isinstance(value, Handed) for value in _values(after)):
            self._handed[batch, block + 1] = values
            self._handed.pop((batch, block - 1), None)


def _values(call: BlockCall) -> list[object]:
    return [*call.arguments, *call.keywords.values()]


def _sharing(old: BlockCall, new: BlockCall, same: dict[tuple[int, int], bool]) -> BlockCall:
    def shared(one: object, other: object) -> object:
        if isinstance(other, tuple) and isinstance(one, tuple) and len(one) == len(other):
            return tuple(map(shared, one, other))
        if isinstance(other, dict) and isinstance(one, dict) and one.keys() == other.keys():
            found = {name: shared(one[name], value) for name, value in other.items()}
            return one if other and all(found[name] is one[name] for name in found) else other
        if not isinstance(one, Tensor) or not isinstance(other, Tensor):
            return other
        key = (id(one), id(other))
        if key not in same:
            same[key] = one.shape == other.shape and torch.equal(one, other)
        return one if same[key] else other

    return BlockCall(
        tuple(map(shared, old.arguments, new.arguments)),
        {name: shared(old.keywords.get(name), value) for name, value in new.keywords.items()},
        new.named,
    )


def _is_written_to(value: object) -> bool:
    """Whether it is a container, or a cache, that a block may leave something in."""
    if isinstance(value, tuple):
        return any(map(_is_written_to, value))
    if type(value) is dict and value:  # masks or positions by kind of layer
        return any(map(_is_written_to, value.values()))
    plain = bool | int | float | str | Tensor | torch.dtype | torch.device
    return value is not None and not isinstance(value, plain)
