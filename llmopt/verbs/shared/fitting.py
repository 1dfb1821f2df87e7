"""How a step keeps to the memory it may have: the first way that fits is taken. No torch."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from llmopt import machine
from llmopt.errors import RecipeError
from llmopt.model.footprint import IN_MEMORY, Arrangement, Footprint
from llmopt.step import PlanContext, Text

IN_FILE = Arrangement(activations_in_file=True)
BY_BLOCKS = Arrangement(whole_models=False)
BY_BLOCKS_IN_FILE = Arrangement(activations_in_file=True, whole_models=False)
_LIMIT = ("max_memory",)
#: the fewest tokens of a sequence that are proposed
_SHORTEST = 32
#: the share of the limit that models which are evaluated whole may take where no limit was typed
_SHARE_OF_WHOLE_MODELS = 0.5


@dataclass(frozen=True)
class Way:
    """How a step may be done: what changes no bytes, and how much text at once."""

    arrangement: Arrangement = IN_MEMORY
    batch_size: int = 1
    length: int = 0


@dataclass(frozen=True)
class Fitted:
    """The way that was chosen, and what it takes."""

    way: Way
    footprint: Footprint


#: what a step needs when it is done in a way
Needs = Callable[[Way], Footprint]


def walked(needs: Needs, text: Text | None, batch_size: int, context: PlanContext) -> Fitted:
    """How a walk over a model keeps to the limit.

    In memory; with activations in a file; a sequence at a time, which changes bytes, so that only
    a limit that was typed leads to it. RecipeError where nothing fits a limit that was typed.
    """
    usual = Way(IN_MEMORY, batch_size, text.length if text else 0)
    ways = [usual]
    if text is not None:
        ways.append(replace(usual, arrangement=IN_FILE))
        if context.max_memory is not None and batch_size > 1:
            ways.append(replace(ways[-1], batch_size=1))
    return _first(needs, ways, text, context, {})


def evaluated(
    needs: Needs, text: Text, context: PlanContext, remedies: Mapping[str, Needs]
) -> Fitted:
    """How an evaluation keeps to the limit: with whole models, or a block of each at a time.

    Without a limit that was typed whole models may take half of the machine's memory. `remedies`
    are other settings, as they are written, and what the step needs with those.
    """
    whole = Way(IN_MEMORY, 1, text.length)
    ways = [replace(whole, arrangement=each) for each in (IN_MEMORY, BY_BLOCKS, BY_BLOCKS_IN_FILE)]
    if context.max_memory is None:
        allowed = _SHARE_OF_WHOLE_MODELS * machine.memory()
        ways = ways[needs(whole).memory_bytes > allowed :]
    return _first(needs, ways, text, context, remedies)


def _first(
    needs: Needs, ways: Sequence[Way], text: Text | None, context: PlanContext,
    remedies: Mapping[str, Needs],
) -> Fitted:  # fmt: skip
    found = [Fitted(way, needs(way)) for way in ways]
    limit = context.max_memory or machine.memory()
    for each in found:
        if each.footprint.memory_bytes <= limit:
            return each
    leanest = min(found, key=lambda each: each.footprint.memory_bytes)
    if context.max_memory is None:  # this may be planned on another machine than it is to run on
        return leanest
    raise _refusal(needs, leanest, text, context, remedies)


def _refusal(
    needs: Needs, leanest: Fitted, text: Text | None, context: PlanContext,
    remedies: Mapping[str, Needs],
) -> RecipeError:  # fmt: skip
    """What is too much, and which setting would fit."""
    source, limit = context.source, context.max_memory or 0
    least = leanest.footprint.memory_bytes
    ways = [
        f"{said} fits"
        for said, other in remedies.items()
        if other(leanest.way).memory_bytes <= limit
    ]
    if text is not None:
        way = leanest.way
        while (way := replace(way, length=way.length // 2)).length >= _SHORTEST:
            if needs(way).memory_bytes <= limit:
                ways.append(f"{source.says(('data', text.split, 'length'), way.length)} fits")
                break
    unit, name = (102.4 * 2**20, "GiB") if least >= 2**30 else (2**20, "MiB")
    rounded = math.ceil(least / unit)
    enough = f"{rounded / 10:g}{name}" if name == "GiB" else f"{rounded}{name}"
    ways.append(f"{source.says(_LIMIT, enough)} is enough")
    message = f"{context.id} needs {in_words(least)} at least, and may hold {in_words(limit)}"
    return source.error(message, _LIMIT, ", or ".join(ways))


def in_words(size: int) -> str:
    """12.3 GiB, or 640 MiB."""
    return f"{size / 2**30:,.1f} GiB" if size >= 2**30 else f"{size / 2**20:,.0f} MiB"
