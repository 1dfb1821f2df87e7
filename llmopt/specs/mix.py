"""What the mixes of GGUF presets are written in: roles of weights, conditions, and a preset."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from llmopt.specs.ggml import GGML_TYPES

#: what a weight does, as far as mixes care; value: fused query, key and value, too
Role = Literal[
    "embedding", "head", "value", "key", "query", "output", "up", "gate", "down", "other"
]


@dataclass(frozen=True, kw_only=True)
class ModelFacts:
    """What mixes ask of a model. architecture: as `general.architecture` has it. layers: all."""

    architecture: str
    layers: int
    heads: int
    kv_heads: int
    experts: int = 0

    @property
    def sharing(self) -> int:
        """Query heads for each key and value head."""
        return self.heads // self.kv_heads if self.kv_heads else 0

    @property
    def is_70b(self) -> bool:
        """Whether llama.cpp calls the size 70B, which it tells from the layers."""
        if self.architecture == "llama":
            return self.layers == 80 and self.heads != self.kv_heads
        return self.layers == {"qwen2": 80, "deci": 80, "olmo": 80, "jais2": 68}.get(
            self.architecture, -1
        )


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where a weight stands among those of its role: the index-th of count."""

    index: int
    count: int
    model: ModelFacts
    has_imatrix: bool


When = Callable[[Place], bool]
Mix = Mapping[Role, Sequence[tuple[str, When]]]


def always(_: Place) -> bool:
    return True


def first_two(place: Place) -> bool:
    return place.index < 2


def first_four(place: Place) -> bool:
    return place.index < 4


def first_eighth(place: Place) -> bool:
    return place.index < place.count // 8


def first_sixteenth(place: Place) -> bool:
    return place.index < place.count // 16


def middle(place: Place) -> bool:
    return place.count // 8 <= place.index < 7 * place.count // 8


def ends_and_thirds(place: Place) -> bool:
    """The first and last eighth, and every third one between: `use_more_bits`."""
    return not middle(place) or (place.index - place.count // 8) % 3 == 2


def shared(place: Place) -> bool:
    """Values that four query heads or more share are small, and errors in them spread."""
    return place.model.sharing >= 4


def shared_or_experts(place: Place) -> bool:
    return shared(place) or place.model.experts >= 4


def blind(place: Place) -> bool:
    return not place.has_imatrix


def guided(place: Place) -> bool:
    return place.has_imatrix


def eight_experts(place: Place) -> bool:
    return place.model.experts == 8


def both(*conditions: When) -> When:
    return lambda place: all(condition(place) for condition in conditions)


@dataclass(frozen=True, kw_only=True)
class Preset:
    """A mix. file_type: `general.file_type`. base: the type of all that no rule speaks of.

    mix: per role, types and when they hold; the first that does counts. head: the output head, or
    the embeddings where they are the head too. lowest: the mixes around two bits and below, which
    treat experts in their own way.
    """

    id: str
    file_type: int
    base: str
    mix: Mix = field(default_factory=dict)
    head: str = "Q6_K"
    embedding: str = ""
    lowest: bool = False
    expert_output: bool = False

    @property
    def is_plain(self) -> bool:
        """Whether weights are floats."""
        return GGML_TYPES[self.base].is_float


def only(type_id: str) -> Sequence[tuple[str, When]]:
    return ((type_id, always),)
