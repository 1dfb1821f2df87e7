"""Predicted and carried out, held against each other and against what lies on disk.

The last look before a model is published: whatever differs is a mistake of llmopt's.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from llmopt.errors import LlmoptError
from llmopt.formats.headers import read_config
from llmopt.formats.quantization import read_contents
from llmopt.model.apply import apply, own_config
from llmopt.model.change import Action, Change, ConfigChange
from llmopt.model.contents import Contents, LogicalTensor
from llmopt.model.layout import Layout, ggml_layout
from llmopt.model.ledger import LedgerEntry
from llmopt.specs import FORMATS
from llmopt.specs.formats import PLAIN
from llmopt.step import Outcome, PlannedStep


def check(step: PlannedStep, outcome: Outcome, model: Path, folder: Path) -> None:
    """LlmoptError where a plan, a ledger and what was written from `model` differ.

    The plan is held to all that it leaves open neither to a budget nor to values: names, sources,
    actions (a transform may have folded more), shapes, layouts, dtypes, bytes and the config. The
    folder is held to all that the ledger says.
    """
    before, found = read_contents(model), read_contents(folder)
    check_changes(step.changes, outcome.ledger)
    check_config(step.config_changes, outcome.config_changes)
    check_sources(before, outcome.ledger)
    format_id = outcome.format if outcome.format != PLAIN else None
    expected = apply(
        before, outcome.ledger, outcome.config_changes,
        format_id=format_id, kind=found.kind,
    )  # fmt: skip
    check_contents(expected, found, folder)


def check_changes(planned: Iterable[Change], ledger: Sequence[LedgerEntry]) -> None:
    """What was planned for each tensor, against what became of it."""
    said = {(entry.name, entry.written): entry for entry in ledger}
    tied = {entry.name for entry in ledger if entry.actions == ("tied",)}
    if len(said) < len(ledger):
        raise _bug("the ledger", "names a tensor twice")
    for change in planned:
        entry = said.pop((change.name, change.written), None)
        if entry is None and not change.settled and change.name in tied:
            entry = said.pop((change.name, False))  # values may say that a head is the embedding
        if entry is None:
            raise _bug(change.name, "was planned, and nothing became of it")
        _check_change(change, entry)
    if said:
        raise _bug(min(said)[0], "became what nothing was planned for")


def _check_change(change: Change, entry: LedgerEntry) -> None:
    if change.written == entry.written and change.sources != entry.sources:
        made, planned = ", ".join(entry.sources), ", ".join(change.sources)
        raise _bug(change.name, f"is made from {made}, not {planned}")
    if not change.settled:
        return
    if not _fulfils(entry.actions, change.actions):
        raise _bug(change.name, f"was {entry.words}, not {change.words}")
    if entry.shape != change.shape:
        raise _bug(change.name, f"has the shape {list(entry.shape)}, not {list(change.shape)}")
    if entry.dtype != change.dtype:
        raise _bug(change.name, f"is {entry.dtype or 'packed'}, not {change.dtype or 'packed'}")
    if entry.layout not in (change.options or (change.layout,)):
        raise _bug(change.name, f"is {_label(entry.layout)}, not {_label(change.layout)}")
    if entry.layout == change.layout and not change.options and entry.bytes != change.bytes:
        raise _bug(change.name, f"takes {entry.bytes:,} bytes, not {change.bytes:,}")


def _fulfils(done: tuple[Action, ...], planned: tuple[Action, ...]) -> bool:
    """Whether that was done. What is folded is decided by values: more may be, and never less."""
    if "folded" in done and "folded" not in planned:
        done = tuple(action for action in done if action != "folded") or ("kept",)
    return done == planned


def check_config(planned: Iterable[ConfigChange], done: Iterable[ConfigChange]) -> None:
    """What was planned for the config, against what was written there."""
    carried_out = {change.key: change for change in done}
    for change in planned:
        found, member = carried_out.pop(change.key, None), ".".join(change.key)
        if found is None or found.removed != change.removed:
            raise _bug(f"{member} in config.json", "was to be written otherwise")
        if change.decided and found.value != change.value:
            raise _bug(f"{member} in config.json", "is not what was planned")
    if carried_out:
        raise _bug(f"{'.'.join(min(carried_out))} in config.json", "was written unplanned")


def check_sources(before: Contents, ledger: Iterable[LedgerEntry]) -> None:
    """No tensor of the input is lost without a word, and none is named that it does not have."""
    named = {source for entry in ledger for source in entry.sources}
    if strange := sorted(before.tensors.keys() ^ named):
        lost = strange[0] in before.tensors
        raise _bug(strange[0], "is lost" if lost else "is no tensor that anything is made from")


def check_contents(expected: Contents, found: Contents, folder: Path) -> None:
    """What was written, against what the changes say of it."""
    if strange := sorted(found.tensors.keys() ^ expected.tensors.keys()):
        unsaid = strange[0] in found.tensors
        raise _bug(strange[0], "was written, and nothing is said of it" if unsaid else "is missing")
    for name, tensor in expected.tensors.items():
        _check_tensor(tensor, found.tensors[name], expected.format)
    if own_config(expected) != read_config(folder):
        raise _bug("config.json", "has members that were not to be there")


def _check_tensor(expected: LogicalTensor, found: LogicalTensor, format_id: str | None) -> None:
    name = expected.name
    if found.shape != expected.shape:
        raise _bug(name, f"has the shape {list(found.shape)}, not {list(expected.shape)}")
    label, said = _said(_layout(found), format_id), _said(_layout(expected), format_id)
    if label != said:
        raise _bug(name, f"is {label or 'plain'}, not {said or 'plain'}")
    if label is None and found.dtype != expected.dtype:
        raise _bug(name, f"is {found.dtype}, not {expected.dtype}")
    if found.nbytes != expected.nbytes:
        raise _bug(name, f"takes {found.nbytes:,} bytes, not {expected.nbytes:,}")


def _layout(tensor: LogicalTensor) -> Layout | None:
    """How a tensor is stored, None for plain numbers."""
    return ggml_layout(tensor.dtype) if tensor.in_blocks else tensor.layout


def _said(layout: Layout | None, format_id: str | None) -> str | None:
    """As much of a layout as a config of the format says."""
    if layout is None:
        return None
    label = layout.label
    if format_id in FORMATS and not FORMATS[format_id].says_symmetric:
        label = label.replace(" asym", " sym")
    weights = label.partition(",")[0]
    return weights if "x" in weights else label  # of blocks, engines settle the activations


def _label(layout: Layout | None) -> str:
    return layout.label if layout else "plain"


def _bug(name: str, what: str) -> LlmoptError:
    return LlmoptError(
        f"{name} {what}: llmopt has written something else than it says, and publishes nothing",
        hint="please report this, it is a mistake of llmopt's",
    )
