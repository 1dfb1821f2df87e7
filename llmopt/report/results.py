"""What a report is made of: bench results, speeds and manifests, read from their documents."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
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
from llmopt.model.ledger import LedgerEntry
from llmopt.specs.base import counted
from llmopt.specs.metrics import Interval, Metrics, value_of

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

    def document(self) -> dict[str, object]:
        """What a manifest holds."""
        return self.model_dump(exclude={"corpus"}, exclude_none=True)

    @property
    def on(self) -> str:
        """` on 16 windows of 512 tokens`; empty where it is not known."""
        return f" on {self.corpus.amount}" if self.corpus and self.corpus.amount else ""


class Timings(Document):
    """Speed and memory of one model, as a run record has them."""

    metrics: dict[str, Metric] = Field(default_factory=dict)


class Machine(Document):
    """What a measurement ran on, and when."""

    processor: str | None = None
    architecture: str | None = None
    system: str | None = None
    cores: int | None = None
    threads: int | None = None
    memory_bytes: int | None = None
    gpus: tuple[str, ...] = ()
    finished: str | None = None
    versions: tuple[tuple[str, str], ...] = ()


class Parent(Document):
    """An artifact that another was made from."""

    name: str
    digest: str | None = None
    manifest_digest: str | None = None


class KnownEntry(LedgerEntry):
    """What became of one tensor, as far as this version knows its members."""

    model_config = ConfigDict(extra="ignore", frozen=True)


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


class GateRecord(Document):
    """What a manifest says of its gate besides the verdicts."""

    corpus: CorpusName | None = None
    evidence: BenchEntry | None = None


class Manifest(Document):
    """The deterministic record beside an artifact."""

    verb: str | None = None
    settings: dict[str, JsonValue] = Field(default_factory=dict)
    parents: list[Parent] = Field(default_factory=list)
    corpus: CorpusName | None = None
    seed: int | None = None
    versions: dict[str, str] = Field(default_factory=dict)
    digest: str | None = None
    manifest_digest: str | None = None
    ledger: list[KnownEntry] = Field(default_factory=list)
    gates: list[Verdict] = Field(default_factory=list)
    gate: GateRecord | None = None

    @property
    def own_gates(self) -> list[Verdict]:
        """What the gate of the step that made it found, and on which text."""
        corpus = self.gate.corpus if self.gate else None
        return [verdict.model_copy(update={"corpus": corpus}) for verdict in self.gates]


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

    def document(self) -> dict[str, object]:
        """What is written."""
        return self.model_dump(by_alias=True, exclude_none=True)


@dataclass(frozen=True)
class Comparison:
    """Models that may be compared: measured on one text, against one base.

    `speeds`, `manifests` and `machines` have the entries' names.
    """

    corpus: CorpusName | None
    base: str | None
    entries: tuple[BenchEntry, ...]
    speeds: Mapping[str, Metrics]
    manifests: Mapping[str, Manifest]
    machines: Mapping[str, Machine] = field(default_factory=dict)

    @property
    def title(self) -> str:
        """What sets these results apart from others of the same report."""
        against = f"Against {self.base}" if self.base else "Without an original"
        text = self.corpus
        on = f" on {', '.join(filter(None, (text.name, text.amount)))}" if text else ""
        return against + on


_Read = TypeVar("_Read", bound=Document)


def parse(model: type[_Read], document: object, what: str) -> _Read:
    """The document as `model`; RequestError naming the place where it is none."""
    try:
        return model.model_validate(document)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"])) or "the document"
        raise RequestError(f"{what} cannot be read: {place}: {first['msg']}") from error


def gate_in_words(manifest: Mapping[str, object]) -> str:
    """Whether an artifact passed its gate, the divergence that was found, and on how much text."""
    made = parse(Manifest, manifest, "the manifest")
    gate = made.gate
    if not made.gates or gate is None or gate.corpus is None:
        return ""
    failed = [verdict.gate for verdict in made.gates if not verdict.passed]
    kl = gate.evidence.value("kl.mean") if gate.evidence else None
    mean = f": mean KL {kl:.3g}" if kl is not None and math.isfinite(kl) else ""
    said = f"failed ({'; '.join(failed)})" if failed else "passed"
    return f"gate {said}{mean} on {gate.corpus.amount} of {gate.corpus.name}"
