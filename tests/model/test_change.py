"""Changes, of tensors and of the config, and the ledger's entries: in words and in JSON."""

from __future__ import annotations

import json

import pytest
from pydantic import TypeAdapter, ValidationError

from llmopt.model.change import Change, ConfigChange, configured
from llmopt.model.layout import Layout
from llmopt.model.ledger import LedgerEntry, Measured, count, document, in_words

W8A8 = Layout(grid="int8", group_size=-1, symmetric=True, activations="int8")
KEPT = Change(name="norm.weight", actions=("kept",), shape=(8,), bytes=16, dtype="BF16")
MADE = Change(
    name="up.weight", sources=("a", "b"), actions=("merged", "folded", "quantized"), shape=(4, 8),
    bytes=40, layout=W8A8, why="asked",
)  # fmt: skip


def test_a_tensor_is_made_from_that_of_its_name_unless_said_otherwise() -> None:
    assert KEPT.sources == ("norm.weight",)
    assert MADE.sources == ("a", "b")


def test_a_layout_is_held_or_new() -> None:
    assert (MADE.quantized, MADE.held) == (W8A8, None)
    held = Change(name="up.weight", actions=("kept",), shape=(4, 8), bytes=40, layout=W8A8)
    assert (held.quantized, held.held) == (None, W8A8)


@pytest.mark.parametrize(
    ("actions", "written"),
    [(("kept",), True), (("folded", "quantized"), True), (("dropped",), False), (("tied",), False)],
)
def test_what_is_dropped_or_tied_is_not_written(actions: tuple[str, ...], written: bool) -> None:
    change = Change(name="w", actions=actions, shape=(1,), bytes=0)  # type: ignore[arg-type]
    assert change.written is written


def test_a_document_leaves_out_what_says_nothing() -> None:
    assert document(KEPT) == {
        "name": "norm.weight", "actions": ["kept"], "shape": [8], "bytes": 16, "dtype": "BF16",
    }  # fmt: skip
    assert document(MADE) == {
        "name": "up.weight", "sources": ["a", "b"], "actions": ["merged", "folded", "quantized"],
        "shape": [4, 8], "bytes": 40, "why": "asked",
        "layout": {"grid": "int8", "group_size": -1, "symmetric": True, "activations": "int8"},
    }  # fmt: skip


@pytest.mark.parametrize("change", [KEPT, MADE], ids=["kept", "made"])
def test_an_entry_is_read_as_it_was_written(change: Change) -> None:
    record = {"error": 0.1, "exact": False, "tokens": 3, "into": ["q"], "scale": [1, 2.0], "x": 1}
    entry = LedgerEntry.of_change(change, Measured.of(record))
    assert entry.to == (change.layout.label if change.layout else None)
    text = json.dumps(entry.document())
    assert TypeAdapter(LedgerEntry).validate_json(text, strict=True) == entry
    with pytest.raises(ValidationError, match="eror"):
        TypeAdapter(LedgerEntry).validate_json(text.replace('"error"', '"eror"'))
    with pytest.raises(ValidationError, match="actions"):
        TypeAdapter(LedgerEntry).validate_json(text.replace('"actions": ["', '"actions": ["un'))


def test_tensors_are_counted_by_all_that_is_done_to_them() -> None:
    tied = Change(name="head", actions=("tied",), shape=(1,), bytes=0)
    actions = [each.actions for each in (KEPT, KEPT, tied, MADE)]
    assert in_words(count(actions)) == "1 merged and folded and quantized, 2 kept"
    assert list(count(actions, tied=True).values()) == [1, 2, 1]


def test_a_config_is_rewritten_member_by_member() -> None:
    config = {"a": 1, "text": {"b": 2, "c": 3}, "code": "x"}
    changes = [
        ConfigChange(key=("a",), value=[7]),
        ConfigChange(key=("text", "b"), removed=True),
        ConfigChange(key=("text", "d"), value=None),
        ConfigChange(key=("code",), removed=True, why="code stays behind"),
    ]
    assert configured(config, changes) == {"a": [7], "text": {"c": 3, "d": None}}
    assert config == {"a": 1, "text": {"b": 2, "c": 3}, "code": "x"}
    assert changes[0].document() == {"key": ["a"], "value": [7], "why": ""}
    assert changes[3].document() == {"key": ["code"], "removed": True, "why": "code stays behind"}
