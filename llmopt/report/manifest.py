"""What a report reads in manifests, as far as this version knows their members."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from pydantic import ConfigDict, Field, JsonValue

from llmopt.model.ledger import LedgerEntry
from llmopt.model.results import BenchEntry, CorpusName, Document, Parent, Verdict, parse
from llmopt.report.card_metadata import FrontMatter


@dataclass(frozen=True, kw_only=True)
class KnownEntry(LedgerEntry):
    """What became of one tensor, as far as this version knows its members."""

    __pydantic_config__ = ConfigDict(extra="ignore")


class ListedFile(Document):
    """One of an artifact's files."""

    path: str
    bytes: int


class Original(Document):
    """The first ancestor that is known."""

    source: str
    digest: str
    revision: str | None = None


class CardFacts(Document):
    """What a manifest keeps for the card."""

    metadata: FrontMatter
    original: Original


class Certificate(Document):
    """How many tensors of a conversion have the values they had, and how far the others moved."""

    exact: int
    rounded: int
    largest_error: float


class Allocated(Document):
    """What was predicted of the layouts that a search chose."""

    predicted_kl: float | None
    bits_per_weight: float


class Evidence(Document):
    """What a step says of its work. left_out: why a file of the parent stays behind, by name."""

    certificate: Certificate | None = None
    allocation: Allocated | None = None
    tokenizer: list[str] | None = None
    left_out: dict[str, str] | None = None
    loading: dict[str, JsonValue] | None = None
    no_tokenizer: bool = False


class GateRecord(Document):
    """What a manifest says of its gate besides the verdicts."""

    corpus: CorpusName | None = None
    evidence: BenchEntry | None = None


class Manifest(Document):
    """The deterministic record beside an artifact."""

    verb: str | None = None
    format: str = ""
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
    files: list[ListedFile] = Field(default_factory=list)
    evidence: Evidence = Evidence()
    card: CardFacts | None = None

    @property
    def own_gates(self) -> list[Verdict]:
        """What the gate of the step that made it found, and on which text."""
        corpus = self.gate.corpus if self.gate else None
        return [verdict.model_copy(update={"corpus": corpus}) for verdict in self.gates]

    @property
    def compared_with(self) -> str:
        """What its gate held it to: "the original", or what it was made from on the way."""
        measured = self.gate.evidence if self.gate else None
        base = measured.against if measured else None
        if base is None or self.card is None or base.digest == self.card.original.digest:
            return "the original"
        return base.name


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
