"""The ledger: what became of each tensor of a step's input, and what that did to its values."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from typing import Any

from pydantic import ConfigDict, JsonValue

from llmopt.model.change import ACTIONS, Action, Change, words_of
from llmopt.model.layout import Layout


@dataclass(frozen=True, kw_only=True)
class Measured:
    """What was found of a tensor while its change was carried out; None: nothing was.

    error: sqrt(sum of squared changes / sum of squares) of its values; output_error: the same of
    the linear's outputs on the calibration text, of so many tokens. exact: whether all values are
    what they were. how: what a conversion did. cold: an expert that few tokens reached. transform,
    into, scale: what moved scales, where to, and the range of them.
    """

    error: float | None = None
    output_error: float | None = None
    exact: bool | None = None
    how: str | None = None
    tokens: int | None = None
    cold: bool | None = None
    transform: str | None = None
    into: tuple[str, ...] | None = None
    scale: tuple[float, ...] | None = None

    @classmethod
    def of(cls, record: Mapping[str, Any]) -> Measured:
        """What a pass noted of a linear or tensor, as far as it was measured."""
        known = {each.name: record[each.name] for each in fields(cls) if each.name in record}
        for name in known.keys() & {"into", "scale"}:
            known[name] = tuple(known[name])
        return cls(**known)


@dataclass(frozen=True, kw_only=True)
class LedgerEntry(Measured, Change):
    """A change that was carried out. `to` is the label of its layout."""

    __pydantic_config__ = ConfigDict(extra="forbid")

    to: str | None = None

    @classmethod
    def of_change(cls, change: Change, measured: Measured = Measured()) -> LedgerEntry:
        """What is said of a change that was carried out."""
        to = change.layout.label if change.layout else None
        return cls(**{**_members(change), **_members(measured)}, to=to)

    @property
    def is_exact(self) -> bool:
        """Whether all values are what they were, where nothing else is said."""
        return self.exact is not False

    def document(self) -> dict[str, JsonValue]:
        """What manifests hold: what there is to say."""
        return document(self)


def document(change: Change) -> dict[str, JsonValue]:
    """The members of a change or an entry, without those that say nothing."""
    usual = {each.name: each.default for each in fields(change)} | {"sources": (change.name,)}
    members = {"name": change.name, "sources": change.sources, "actions": change.actions}
    members |= _members(change)
    return {
        name: _plain(value)
        for name, value in members.items()
        if value is not None and value != usual[name]
    }


def _members(value: Change | Measured | Layout) -> dict[str, Any]:
    return {each.name: getattr(value, each.name) for each in fields(value)}


def _plain(value: object) -> JsonValue:
    """A member as JSON has it; a layout without what it usually lacks."""
    if isinstance(value, Layout):
        return {
            name: each
            for name, each in _members(value).items()
            if each not in (False, None) or name == "symmetric"
        }
    if isinstance(value, tuple):
        return [_plain(each) for each in value]
    assert isinstance(value, str | int | float)
    return value


def count(actions: Iterable[Iterable[Action]], *, tied: bool = False) -> dict[str, int]:
    """How many tensors the same is done to, by the words for it, in the order of tables.

    A tied tensor counts only if asked: the checkpoint has it under another name.
    """
    found = Counter(tuple(each) for each in actions)
    ordered = sorted(found, key=lambda each: (ACTIONS.index(each[-1]), each))
    return {words_of(each): found[each] for each in ordered if tied or "tied" not in each}


def in_words(counts: Mapping[str, int]) -> str:
    """`35 quantized, 18 kept`."""
    return ", ".join(f"{number} {words}" for words, number in counts.items())
