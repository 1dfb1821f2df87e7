"""The kinds of work that a step's time is made of; `llmopt doctor --measure` times each of them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from llmopt.specs.ggml import GGML_TYPES

Unit = Literal["FLOP", "bytes", "weights", "columns", "elements", "times"]


@dataclass(frozen=True, kw_only=True)
class WorkSpec:
    """A kind of work, and what amounts of it count.

    Choosing codes takes time for each weight, and, where columns come one after the other, for
    each column: a call that works on a column of few rows takes as long as one of some hundred.
    """

    id: str
    unit: Unit
    summary: str


def encoding(type_id: str, search: str) -> str:
    """The kind of work that finding the nearest blocks of a ggml type is."""
    return f"{type_id} {search}"


def feedback(type_id: str) -> str:
    """The kind of work that feeding errors back on a ggml type is, at two sweeps."""
    return f"{type_id} feedback"


def columns(kind: str) -> str:
    """What a kind of work takes for each column, beside what it takes for each weight."""
    return f"{kind} columns"


def feedback_products(refine: int) -> int:
    """Products of errors with one side of a Hessian or with its factor, each rows * cols^2 FLOP.

    The factor takes one, the first sweep two, and each sweep after it one.
    """
    return 1 + (1 + refine if refine else 0)


_PLAIN: tuple[tuple[str, Unit, str], ...] = (
    ("start", "times", "a process with torch and transformers loaded"),
    ("products", "FLOP", "float32 products"),
    ("attention", "FLOP", "products inside attention, softmax and all"),
    ("hessians", "FLOP", "Hessians"),
    ("factors", "FLOP", "Cholesky factors"),
    ("factor elements", "elements", "what is done to a Hessian beside"),
    ("moved", "bytes", "memory, element by element"),
    ("decoding", "bytes", "bytes of weights read from memory for each token generated"),
    ("read", "bytes", "read from disk"),
    ("written", "bytes", "written to disk"),
    ("hashed", "bytes", "SHA-256"),
    ("nearest", "weights", "nearest codes, scales searched"),
    ("clipping", "weights", "clips of groups tried"),
    ("scale search", "weights", "a scale of inputs tried"),
    ("feedback", "weights", "error feedback on a grid, beside its products"),
    ("feedback sweep", "weights", "one more sweep of it"),
    (columns("feedback"), "columns", "error feedback on a grid"),
    (columns("feedback sweep"), "columns", "one more sweep of it"),
)  # fmt: skip


def _kinds() -> dict[str, WorkSpec]:
    found = {id_: WorkSpec(id=id_, unit=unit, summary=said) for id_, unit, said in _PLAIN}
    for type_id, spec in GGML_TYPES.items():
        if spec.is_float:
            continue
        for search in ("best", "reference"):
            kind = encoding(type_id, search)
            found[kind] = WorkSpec(id=kind, unit="weights", summary=f"{type_id}, nearest blocks")
        kind, summary = feedback(type_id), f"{type_id}, error feedback"
        found[kind] = WorkSpec(id=kind, unit="weights", summary=summary)
        found[columns(kind)] = WorkSpec(id=columns(kind), unit="columns", summary=summary)
    return found


WORK = _kinds()
