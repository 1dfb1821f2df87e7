"""What a report is made of: bench results, speeds and manifests, read from their documents."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from llmopt.errors import RequestError
from llmopt.model.ledger import LedgerEntry
from llmopt.specs.base import counted


class Document(BaseModel):
    """Part of a JSON document; members that a report does not show are let be."""

    model_config = ConfigDict(extra="ignore", frozen=True)


class Interval(Document):
    """An estimate with its 95% interval; each may be unknown."""

    value: float | None = None
    low: float | None = None
    high: float | None = None


class Divergence(Document):
    """KL(original || model) over positions, in nats."""

    mean: Interval = Interval()
    median: float | None = None
    p99: float | None = None
    p99_9: float | None = None
    max: float | None = None


class Flips(Document):
    """Shares (0 to 1) of positions where the top token changed: right to wrong, wrong to right,
    and wrong to another wrong one."""

    lost: float | None = None
    gained: float | None = None
    changed: float | None = None


class Speed(Document):
    """Measured on one machine: seconds, tokens per second, bytes.

    weight_bytes: the weights in memory; loaded_bytes, peak_bytes: of the whole process that held
    nothing but this model, its libraries included (on a GPU: what torch allocated there).
    """

    first_token_s: float | None = None
    prefill_tokens_per_s: float | None = None
    decode_tokens_per_s: float | None = None
    token_p50_s: float | None = None
    token_p95_s: float | None = None
    weight_bytes: int | None = None
    loaded_bytes: int | None = None
    peak_bytes: int | None = None


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
    """One gate and what it found. `default`: nobody set it; `corpus`: the text it was held to."""

    gate: str
    value: float | None = None
    passed: bool
    default: bool = False
    corpus: CorpusName | None = None

    @property
    def on(self) -> str:
        """` on 16 windows of 512 tokens`; empty where it is not known."""
        return f" on {self.corpus.amount}" if self.corpus and self.corpus.amount else ""


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


class _Gate(Document):
    """What a manifest says of its gate besides the verdicts."""

    corpus: CorpusName | None = None


class Manifest(Document):
    """The deterministic record beside an artifact."""

    verb: str | None = None
    settings: dict[str, Any] = Field(default_factory=dict)
    parents: list[Parent] = Field(default_factory=list)
    corpus: CorpusName | None = None
    seed: int | None = None
    versions: dict[str, str] = Field(default_factory=dict)
    digest: str | None = None
    manifest_digest: str | None = None
    ledger: list[KnownEntry] = Field(default_factory=list)
    gates: list[Verdict] = Field(default_factory=list)
    gate: _Gate | None = None

    @property
    def own_gates(self) -> list[Verdict]:
        """What the gate of the step that made it found, and on which text."""
        corpus = self.gate.corpus if self.gate else None
        return [verdict.model_copy(update={"corpus": corpus}) for verdict in self.gates]


class Entry(Document):
    """One model that was measured. Ratios are to the base, where there is one."""

    name: str
    bytes: int
    format: str | None = None
    runtime: str | None = None
    bits_per_weight: float | None = None
    digest: str | None = None
    manifest_digest: str | None = None
    is_base: bool = False
    perplexity: Interval | None = None
    perplexity_ratio: Interval | None = None
    kl: Divergence | None = None
    agreement: Interval | None = None
    flips: Flips | None = None
    size_ratio: float | None = None
    gates: list[Verdict] = Field(default_factory=list)

    @property
    def engine(self) -> str:
        """What ran it, where that was another runtime than torch: "in llama.cpp"."""
        return f"in {self.runtime}" if self.runtime not in (None, "torch") else ""

    @property
    def passed(self) -> bool:
        """Whether no gate failed."""
        return all(verdict.passed for verdict in self.gates)


class Bench(Document):
    """bench.json."""

    schema_: Literal[1] = Field(alias="schema")
    corpus: CorpusName | None = None
    base: str | None = None
    entries: list[Entry] = Field(min_length=1)


@dataclass(frozen=True)
class Results:
    """Models that may be compared: measured on one text, against one base.

    `speed`, `manifests` and `machines` have the entries' names.
    """

    corpus: CorpusName | None
    base: str | None
    entries: tuple[Entry, ...]
    speed: Mapping[str, Speed]
    manifests: Mapping[str, Manifest]
    machines: Mapping[str, Machine] = field(default_factory=dict)

    @property
    def title(self) -> str:
        """What sets these results apart from others of the same report."""
        against = f"Against {self.base}" if self.base else "Without an original"
        text = self.corpus
        on = f" on {', '.join(filter(None, (text.name, text.amount)))}" if text else ""
        return against + on

    @staticmethod
    def from_documents(
        bench: dict[str, Any],
        speed: Mapping[str, dict[str, Any]],
        manifests: Mapping[str, dict[str, Any]],
    ) -> Results:
        """Read bench.json, the run record's speeds and the manifests; RequestError if malformed.

        Speeds and manifests may be missing for any entry.
        """
        document = parse(Bench, bench, "the bench results")
        names = [entry.name for entry in document.entries]
        if len(set(names)) < len(names):
            raise RequestError("the bench results name one model twice")
        return Results(
            corpus=document.corpus,
            base=document.base,
            entries=tuple(document.entries),
            speed={n: parse(Speed, speed[n], f"the speed of {n}") for n in names if n in speed},
            manifests={
                n: parse(Manifest, manifests[n], f"the manifest of {n}")
                for n in names
                if n in manifests
            },
        )


_Read = TypeVar("_Read", bound=Document)


def parse(model: type[_Read], document: object, what: str) -> _Read:
    """The document as `model`; RequestError naming the place where it is none."""
    try:
        return model.model_validate(document)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"])) or "the document"
        raise RequestError(f"{what} cannot be read: {place}: {first['msg']}") from error


def gate_in_words(manifest: dict[str, Any]) -> str:
    """Whether an artifact passed its gate, the divergence that was found, and on how much text."""
    verdicts, gate = manifest.get("gates", []), manifest.get("gate", {})
    if not verdicts or not gate.get("corpus"):
        return ""
    failed = [verdict["gate"] for verdict in verdicts if not verdict["passed"]]
    corpus = parse(CorpusName, gate["corpus"], "the gate's text")
    kl = parse(Entry, gate["evidence"], "the gate's evidence").kl
    mean = f": mean KL {kl.mean.value:.3g}" if kl and kl.mean.value is not None else ""
    said = f"failed ({'; '.join(failed)})" if failed else "passed"
    return f"gate {said}{mean} on {corpus.amount} of {corpus.name}"
