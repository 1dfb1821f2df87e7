"""What becomes of each tensor of a model, and of its config.

Plans predict it, verbs carry it out, manifests record it and reports show it: one type, and the
same words.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal, get_args

from pydantic import JsonValue

from llmopt.model.layout import Layout

#: what may become of a tensor, in the order of tables
Action = Literal[
    "quantized", "decoded", "folded", "masked", "reshaped", "merged", "split", "kept", "dropped",
    "tied",
]  # fmt: skip
ACTIONS: tuple[Action, ...] = get_args(Action)
#: what leaves no tensor of that name
NOT_WRITTEN: frozenset[Action] = frozenset({"dropped", "tied"})


@dataclass(frozen=True, kw_only=True)
class Change:
    """How one tensor comes about; of one that is not written, why.

    name: what it is called in what is written. sources: the tensors of the input that it is made
    from; the one of its name unless they are given. actions: in the order in which they happen:
    "quantized" to a layout, "decoded" from codes to plain numbers, "folded": a transform moved
    scales into or out of it, "masked": some values are zero and stay so, "reshaped": rows or
    columns were cut, "merged" from several sources, "split" off one that holds others, too;
    "kept" as it was, or as plain numbers. "dropped": nothing is written; "tied": it is the model's
    name for a tensor that is written under another.

    shape: as it is stored then, [outputs, inputs] of a linear that is quantized. layout: how it is
    stored where that is no plain numbers; else dtype, as headers say it. bytes: on disk.
    options: what a budget, or the values, may choose among; as long as it is open, layout stands
    for them, and bytes is a share of the target. settled: whether layout and bytes are no stand-in
    for what an earlier step has yet to choose.
    """

    name: str
    actions: tuple[Action, ...]
    shape: tuple[int, ...]
    bytes: int
    sources: tuple[str, ...] = ()
    layout: Layout | None = None
    dtype: str = ""
    why: str = ""
    options: tuple[Layout, ...] = ()
    settled: bool = True

    def __post_init__(self) -> None:
        if not self.sources:
            object.__setattr__(self, "sources", (self.name,))

    @property
    def written(self) -> bool:
        """Whether what is written has a tensor of this name."""
        return not NOT_WRITTEN & set(self.actions)

    @property
    def quantized(self) -> Layout | None:
        """The layout of what this step quantizes; None for what it does not."""
        return self.layout if "quantized" in self.actions else None

    @property
    def held(self) -> Layout | None:
        """The layout of what came quantized, and stays so."""
        return None if "quantized" in self.actions else self.layout

    @property
    def module(self) -> str:
        """The module whose weight it is."""
        return self.name.removesuffix(".weight")

    @property
    def words(self) -> str:
        """What happens to it: `folded and quantized`."""
        return words_of(self.actions)


@dataclass(frozen=True, kw_only=True)
class ConfigChange:
    """A member of config.json that is written otherwise than it was read.

    key: the names on the way to it. value: what it is then, unless it is removed. decided: whether
    that is known before the run; value is what it would be by what is known, else.
    """

    key: tuple[str, ...]
    value: JsonValue = None
    removed: bool = False
    why: str = ""
    decided: bool = True

    def document(self) -> dict[str, JsonValue]:
        """What manifests hold."""
        said: dict[str, JsonValue] = {"removed": True} if self.removed else {"value": self.value}
        return {"key": list(self.key), **said, "why": self.why}


def configured(
    config: Mapping[str, JsonValue], changes: Iterable[ConfigChange]
) -> dict[str, JsonValue]:
    """A config with these members otherwise; what a member lies in has to be there."""
    found = dict(config)
    for change in changes:
        first, *rest = change.key
        if rest:
            inner = found[first]
            assert isinstance(inner, dict), f"{first} of the config holds no members"
            below = ConfigChange(key=tuple(rest), value=change.value, removed=change.removed)
            found[first] = configured(inner, [below])
        elif change.removed:
            found.pop(first, None)
        else:
            found[first] = change.value
    return found


def words_of(actions: Iterable[Action]) -> str:
    """`folded and quantized`."""
    return " and ".join(actions)
