"""The ledger: what became of each tensor of a step's input.

Stages write these entries, manifests hold them, reports and cards read them: there is no other
definition, so that nothing can be written that cannot be read.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any, Literal, get_args

from pydantic import BaseModel, ConfigDict

#: what may become of a tensor, in the order of tables
Action = Literal["quantized", "decoded", "folded", "kept", "left out", "tied"]
ACTIONS: tuple[Action, ...] = get_args(Action)


class LedgerEntry(BaseModel):
    """One tensor. Members that a step has nothing to say about stay unset, and are not written.

    action: "quantized" to the layout `to`; "decoded" from codes to plain numbers; "folded": a
    transform moved scales into or out of it; "kept": written as plain numbers, or as it was;
    "left out": the target has no place for it; "tied": the model's name for a tensor that the
    checkpoint has under another.
    error: sqrt(sum of squared changes / sum of squares) of its values; output_error: the same of
    the linear's outputs on the calibration text. exact: whether all values are what they were.
    how: what a conversion did. why: the reason where it is not what the step does by default.
    cold: an expert that few tokens reached. into, scale: what a transform was folded into, and
    the range of its scales.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str
    action: Action
    shape: list[int] | None = None
    to: str | None = None
    why: str | None = None
    bits_per_weight: float | None = None
    error: float | None = None
    output_error: float | None = None
    exact: bool = True
    how: str | None = None
    tokens: int | None = None
    cold: bool = False
    desc_act: bool = False
    transform: str | None = None
    into: list[str] | None = None
    scale: list[float] | None = None

    def document(self) -> dict[str, Any]:
        """What manifests hold."""
        return self.model_dump(exclude_unset=True)


def count(actions: Iterable[str]) -> dict[str, int]:
    """How many tensors there are of each action, in the order of tables.

    A tied tensor is not counted: the checkpoint has it under another name.
    """
    found = Counter(actions)
    return {action: found[action] for action in ACTIONS if found[action] and action != "tied"}


def in_words(counts: Mapping[str, int]) -> str:
    """`35 quantized, 18 kept`."""
    return ", ".join(f"{number} {action}" for action, number in counts.items())
