"""What a bench step writes: the same types write and read it, and its part in manifests."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Annotated, Literal, TypeVar

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    JsonValue,
    ValidationError,
)

from llmopt.errors import RequestError
from llmopt.specs.base import counted
from llmopt.specs.metrics import Interval, value_of

#: of bench.json
BENCH_SCHEMA: Literal[2] = 2


class Document(BaseModel):
    """Part of a JSON document; members that a report does not show are let be."""

    model_config = ConfigDict(extra="ignore", frozen=True)


def _not_a_number(value: object) -> object:
    """null is how JSON says what is not finite."""
    if isinstance(value, Mapping):
        return {name: math.nan if each is None else each for name, each in value.items()}
    return math.nan if value is None else value


Metric = Annotated[int | float | Interval, BeforeValidator(_not_a_number)]


class CorpusName(Document):
    """Which text was used: its name, the SHA-256 of its documents, how much of it."""

    name: str
    sha256: str
    windows: int | None = None
    length: int | None = None
    #: the length by default, where the model's context has no room for it
    cut_from: int | None = None

    def document(self) -> dict[str, JsonValue]:
        """What a manifest holds."""
        return self.model_dump(exclude_none=True)

    @property
    def amount(self) -> str:
        """`16 windows of 512 tokens`; empty where it is not known."""
        if not self.windows or not self.length:
            return ""
        return f"{counted(self.windows, 'window')} of {counted(self.length, 'token')}"


class Verdict(Document):
    """One gate and what it found. `default`: nobody set it; `model`: what was judged, where that
    is not said around it; `corpus`: the text, where that is known."""

    gate: str
    value: float | None = None
    passed: bool
    default: bool = False
    model: str | None = None
    corpus: CorpusName | None = None

    def document(self) -> dict[str, JsonValue]:
        """What a manifest holds."""
        return self.model_dump(exclude={"corpus"}, exclude_none=True)

    @property
    def on(self) -> str:
        """` on 16 windows of 512 tokens`; empty where it is not known."""
        return f" on {self.corpus.amount}" if self.corpus and self.corpus.amount else ""


class Timings(Document):
    """Speed and memory of one model, as a run record has them."""

    metrics: dict[str, Metric] = Field(default_factory=dict)


class Parent(Document):
    """An artifact that another was made from; one from outside has a source, and a revision where
    that is the hub. `role`: what the step read it as."""

    name: str
    role: str = ""
    digest: str | None = None
    manifest_digest: str | None = None
    source: str | None = None
    revision: str | None = None


class BenchEntry(Document):
    """One model that was measured; `against`: what it was compared with."""

    name: str
    format: str | None = None
    runtime: str | None = None
    digest: str | None = None
    manifest_digest: str | None = None
    is_base: bool = False
    against: Parent | None = None
    metrics: dict[str, Metric] = Field(default_factory=dict)
    gates: list[Verdict] = Field(default_factory=list)

    def evidence(self) -> dict[str, object]:
        """What the manifest of the measured model keeps: its own digest can't be part of it, and
        verdicts stand there already."""
        return self.model_dump(exclude={"manifest_digest", "gates"}, exclude_none=True)

    def value(self, metric: str) -> float | None:
        """What a metric was found to be, None where it was not measured."""
        found = self.metrics.get(metric)
        return None if found is None else value_of(found)

    @property
    def bytes(self) -> int:
        """Of the weight files; 0 where they were not measured."""
        return int(self.value("size.bytes") or 0)

    @property
    def engine(self) -> str:
        """What ran it, where that was another runtime than torch: "in llama.cpp"."""
        return f"in {self.runtime}" if self.runtime not in (None, "torch") else ""

    @property
    def passed(self) -> bool:
        """Whether no gate failed."""
        return all(verdict.passed for verdict in self.gates)


def _named_once(entries: list[BenchEntry]) -> list[BenchEntry]:
    names = [entry.name for entry in entries]
    if len(set(names)) < len(names):
        raise ValueError("one model is named twice")
    return entries


class Bench(Document):
    """bench.json."""

    model_config = ConfigDict(validate_by_name=True, validate_by_alias=True)

    schema_: Literal[2] = Field(BENCH_SCHEMA, alias="schema")
    corpus: CorpusName | None = None
    base: str | None = None
    entries: Annotated[list[BenchEntry], AfterValidator(_named_once)] = Field(min_length=1)

    def document(self) -> dict[str, JsonValue]:
        """What is written."""
        return self.model_dump(by_alias=True, exclude_none=True)


_Read = TypeVar("_Read", bound=Document)


def parse(model: type[_Read], document: object, what: str) -> _Read:
    """The document as `model`; RequestError naming the place where it is none."""
    try:
        return model.model_validate(document)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"])) or "the document"
        raise RequestError(f"{what} cannot be read: {place}: {first['msg']}") from error
