"""Manifests carry a digest of themselves, and none is read that lacks something."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from llmopt import artifact
from llmopt.errors import RequestError
from tests.artifacts import DIGEST, published, with_card


def edit(folder: Path, *, seal: bool = False, **members: Any) -> None:
    """Change a manifest as a hand would; with `seal`, as one that knows of the digest would."""
    path = folder / "llmopt.json"
    manifest = json.loads(path.read_text()) | members
    manifest = {name: value for name, value in manifest.items() if value != "GONE"}
    path.write_text(json.dumps(artifact.sealed(manifest) if seal else manifest))


def test_two_runs_write_the_same_manifest(tmp_path: Path) -> None:
    first, second = (published(tmp_path / name, **with_card()) for name in ("a", "b"))
    assert (first / "llmopt.json").read_bytes() == (second / "llmopt.json").read_bytes()


@pytest.mark.parametrize(
    "members",
    [
        {"gates": []},
        {"settings": {"method": "gptq", "grid": "int4", "group_size": 128}},
        {"ledger": [{"name": "w", "actions": ["kept"], "shape": [1], "bytes": 4}]},
        {"extra": 1},
        {"manifest_digest": DIGEST},
    ],
)
def test_an_edited_manifest_is_read_by_nobody(tmp_path: Path, members: dict[str, Any]) -> None:
    verdict = {"gate": "kl.mean < 1", "model": "w4", "value": 2.0, "passed": False}
    out = published(tmp_path / "out", gates=[verdict])
    edit(out, **members)
    for reads in (
        lambda: artifact.read_manifest(out),
        lambda: artifact.known_digest(out),
        lambda: artifact.open_artifact("out", out),
        lambda: artifact.check_destination(out),
    ):
        with pytest.raises(RequestError, match="was changed after llmopt wrote it"):
            reads()
    assert not artifact.complete(out, "k")


def test_a_manifest_laid_out_otherwise_is_the_same(tmp_path: Path) -> None:
    out = published(tmp_path / "out")
    manifest = artifact.read_manifest(out)
    (out / "llmopt.json").write_text(json.dumps(manifest, sort_keys=False))
    assert artifact.read_manifest(out) == manifest


def test_an_older_manifest_is_refused_with_what_to_do(tmp_path: Path) -> None:
    out = published(tmp_path / "out")
    edit(out, schema=1, manifest_digest="GONE")
    with pytest.raises(RequestError, match="earlier llmopt") as raised:
        artifact.read_manifest(out)
    assert "make the artifact again" in (raised.value.hint or "")
    edit(out, schema=True)
    with pytest.raises(RequestError, match="schema True"):
        artifact.read_manifest(out)


FILE = {"path": "a", "bytes": 1, "sha256": "0" * 64}


@pytest.mark.parametrize(
    ("members", "says"),
    [
        ({"files": "GONE"}, "files"),
        ({"files": None}, "files"),
        ({"files": [{"path": "a"}]}, "files.0.bytes"),
        ({"files": [FILE | {"bytes": "1"}]}, "files.0.bytes"),
        ({"files": [FILE | {"bytes": True}]}, "files.0.bytes"),
        ({"files": [FILE | {"bytes": -1}]}, "files.0.bytes"),
        ({"files": [FILE | {"sha256": "x"}]}, "files.0.sha256"),
        ({"files": [FILE, FILE]}, "listed twice"),
        *(
            ({"files": [FILE | {"path": path}]}, "not the path of a file in the artifact")
            for path in ("../a", "/etc/passwd", "a/../../b", "./a", "a//b", ".", ".hid", "a\\b")
        ),
        ({"digest": "GONE"}, "digest"),
        ({"digest": 1}, "digest"),
        ({"manifest_digest": "GONE"}, "manifest_digest"),
        ({"gates": "GONE"}, "gates"),
        ({"gates": [{"gate": "x"}]}, "gates.0"),
        ({"gates": {"a": 1}}, "gates"),
        ({"gate": None}, "gate"),
        ({"gate": {"key": "k"}}, "gate.evidence"),
        ({"card": None}, "card"),
        ({"card": {}}, "card.metadata"),
        ({"parents": []}, "parents"),
        ({"parents": [{"role": "model", "name": "model"}]}, "parents.0.digest"),
        ({"settings": []}, "settings"),
        ({"settings": {"method": "rtn", "grid": "int4", "group_size": "32"}}, "group_size"),
        ({"ledger": [1]}, "ledger.0"),
        ({"ledger": [{"name": "w", "actions": ["lost"], "shape": [1], "bytes": 4}]}, "ledger.0"),
        ({"config_changes": "GONE"}, "config_changes"),
        ({"config_changes": [{"key": [], "why": ""}]}, "config_changes.0.key"),
        ({"corpus": {"name": "x"}}, "corpus"),
        ({"evidence": {"certificate": {}}}, "evidence.certificate"),
        ({"versions": {"llmopt": 1}}, "versions.llmopt"),
        ({"key": 1}, "key"),
        ({"name": "GONE"}, "name"),
    ],
)
def test_a_malformed_manifest_is_one_sentence(
    tmp_path: Path, members: dict[str, Any], says: str
) -> None:
    out = published(tmp_path / "out")
    edit(out, seal=members.get("manifest_digest") != "GONE", **members)
    with pytest.raises(RequestError, match=r"llmopt\.json is not a manifest") as raised:
        artifact.read_manifest(out)
    assert says in raised.value.message
    assert not artifact.complete(out, "k")


def test_step_key_depends_on_everything() -> None:
    keys = {
        artifact.step_key("quantize", 1, {"a": 1}, {"model": "x"}),
        artifact.step_key("quantize", 2, {"a": 1}, {"model": "x"}),
        artifact.step_key("bench", 1, {"a": 1}, {"model": "x"}),
        artifact.step_key("quantize", 1, {"a": 2}, {"model": "x"}),
        artifact.step_key("quantize", 1, {"a": 1}, {"model": "y"}),
    }
    assert len(keys) == 5


def test_a_card_that_was_changed_by_hand_is_not_written_over(tmp_path: Path) -> None:
    out = published(tmp_path / "out", **with_card())
    assert artifact.card_is_ours(out)
    (out / "README.md").write_text("my own words")
    artifact.write_records(out, artifact.read_manifest(out), "a new card")
    assert (out / "README.md").read_text() == "my own words"
    assert not artifact.card_is_ours(out)
    assert not artifact.card_missing(out)
    (out / "README.md").unlink()
    assert artifact.card_missing(out)
