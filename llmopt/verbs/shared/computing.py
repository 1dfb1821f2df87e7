"""What forwards, statistics and solves of a model have to compute, from shapes alone. No torch."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

from llmopt.model.contents import Contents
from llmopt.model.effort import Effort
from llmopt.specs.walking import (
    KEPT_LITTLE,
    KEPT_SHARE,
    split_rows,
)
from llmopt.step import Text

#: what a walk does with a block: one forward; one for statistics and one of what was changed;
#: one for each inlet in turn
Manner = Literal["through", "twice", "in turn"]
#: times that what flows into and out of a linear is read or written besides
_PASSES = 2
#: times that logits of a model are read or written to compare them
_LOGIT_PASSES = 24

Inlets = tuple[tuple[str, ...], ...]


@dataclass(frozen=True)
class Run:
    """How often a linear is computed for all tokens; `ends` a module whose inputs are kept."""

    linear: str
    times: int
    ends: bool = False


class Computing:
    """Of one model, with the tokens that flow through it."""

    def __init__(self, contents: Contents, text: Text) -> None:
        self.contents, self._text = contents, text
        self.tokens = text.count * text.length
        self.width = self._shape(contents.naming.embedding)[1]
        self.vocabulary = self._shape(contents.naming.embedding)[0]

    def shape(self, linear: str) -> tuple[int, int]:
        """(outputs, inputs), whatever way the checkpoint stores it."""
        rows, cols = self._shape(linear)
        transposed = self.contents.naming.transposed(linear)
        return (cols, rows) if transposed else (rows, cols)

    def seen(self, linear: str) -> float:
        """Tokens that reach a linear: of experts the share that routers send there."""
        naming = self.contents.naming
        if naming.pool_of(linear) is None:
            return self.tokens
        block = naming.block_of(linear)
        experts = naming.experts[block or 0]
        return self.tokens * min(1.0, self._chosen / experts)

    def forward(self) -> Effort:
        """All blocks once."""
        return self.blocks("through", to_head=True)

    def logits(self) -> Effort:
        """The head, and what is looked at in its logits."""
        size = self.tokens * self.vocabulary
        return Effort({"products": 2 * size * self.width, "moved": 4 * size * _LOGIT_PASSES})

    def blocks(self, manner: Manner, *, to_head: bool) -> Effort:
        """The forwards of a walk over all blocks.

        to_head: the head is walked, too, so that what the last block gives is computed.
        """
        found: dict[str, float] = defaultdict(float)
        last = self.contents.naming.block_count - 1
        for block in range(last + 1):
            rounds = self._rounds(block, in_turn=manner == "in turn")
            through = to_head or block < last
            runs, attention = _runs(rounds, manner, self._ends(rounds), through=through)
            for each in runs:
                rows, cols = self.shape(each.linear)
                kept = each.ends and rows == cols  # what it gives is kept as well
                tokens = self.seen(each.linear) * (min(1, each.times) if kept else each.times)
                found["products"] += 2 * tokens * rows * cols
                found["moved"] += 4 * tokens * (rows + cols) * _PASSES
            width = self.shape(rounds[1][0][0])[1] if len(rounds) > 1 else self.width
            found["attention"] += 4 * self.tokens * self._text.length * width * attention
        return Effort(dict(found))

    def statistics(self, *, hessians: bool, head: bool = False) -> Effort:
        """Sums over the inputs of all linears: of x x^T, or of squares alone."""
        found: dict[str, float] = defaultdict(float)
        naming = self.contents.naming
        inlets = [names for b in range(naming.block_count) for names in naming.linears(b)]
        widths = [(self.shape(names[0])[1], self.seen(names[0])) for names in inlets]
        for width, tokens in widths + ([(self.width, self.tokens)] if head else []):
            found["moved"] += 4 * 3 * tokens * width
            if hessians:
                found["hessians"] += 2 * tokens * _squares(width)
        return Effort(dict(found))

    def _rounds(self, block: int, *, in_turn: bool) -> list[Inlets]:
        """Inlets that are looked at in one run, where they are looked at in turn."""
        naming = self.contents.naming
        if not in_turn:
            return list(naming.rounds(block))
        weights = [name for inlet in naming.linears(block) for name in inlet]
        budget = sum(4 * math.prod(self.shape(name)) for name in weights)

        def needed(name: str) -> int:
            return 4 * self.shape(name)[1] ** 2

        return [tuple(some) for some in naming.rounds_within(block, needed, budget)]

    @property
    def kept(self) -> tuple[int, int]:
        """Bytes of inputs that a walk keeps of a block, where each inlet is looked at in turn.

        Those that may lie in memory, and those that lie in files in any case.
        """
        rounds = self._rounds(0, in_turn=True)
        left = most = max(KEPT_SHARE * self.width, KEPT_LITTLE // (4 * self.tokens))
        beside = 0
        for index in self._ends(rounds).values():
            width = self.shape(rounds[index][0][0])[1]
            left, beside = (left - width, beside) if width <= left else (left, beside + width)
        return 4 * self.tokens * (most - left), 4 * self.tokens * beside

    def _ends(self, rounds: Sequence[Inlets]) -> dict[str, int]:
        """Modules that end in a linear whose inputs are kept -> the round of that linear."""
        return {
            _module(names[0]): index
            for index, inlets in enumerate(rounds)
            for names in inlets
            if len(names) == 1 and self.contents.naming.pool_of(names[0]) is None
        }

    @cached_property
    def _chosen(self) -> int:
        config = self.contents.family.language_config(self.contents.config)
        return next(
            (n for key in ("num_experts_per_tok", "num_experts_per_token", "top_k")
             if isinstance(n := config.get(key), int)),
            2,
        )  # fmt: skip

    def _shape(self, module: str) -> tuple[int, int]:
        tensor = self.contents.tensors.get(f"{module}.weight")
        if tensor is None and module == self.contents.naming.head:
            return self._shape(self.contents.naming.embedding)
        return (tensor.shape[0], tensor.shape[1]) if tensor else (0, 0)


def _runs(
    rounds: Sequence[Inlets], manner: Manner, ends: dict[str, int], *, through: bool
) -> tuple[list[Run], int]:
    """How often each linear of a block, and its attention, are computed.

    In turn, each round's inputs take a run as far as there, and a last one goes all the way, if it
    goes `through`; a module whose end's inputs are kept is computed for the last time when they
    are.
    """
    last, found, in_turn = len(rounds) - 1, [], manner == "in turn"
    for index, inlets in enumerate(rounds):
        for name in (name for names in inlets for name in names):
            if in_turn:
                end = next((e for path, e in ends.items() if name.startswith(path)), last + 1)
                times = end - index if index < end else last - index + through
            else:
                times = through + (manner == "twice" and index < last)
            found.append(Run(name, times, ends=in_turn and ends.get(_module(name)) == index))
    if not in_turn:
        return found, through + (manner == "twice")
    attention = 1 if 1 in ends.values() else max(last, 1) + through
    return found, attention


def _module(linear: str) -> str:
    """What names in its module begin with."""
    return linear.rpartition(".")[0] + "."


def _squares(width: int) -> float:
    """Elements of a Hessian that are computed."""
    rows = min(split_rows(width), width)
    blocks = -(-width // rows)
    return blocks * (blocks + 1) / 2 * rows**2
