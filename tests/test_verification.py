"""Nothing in an artifact can be changed unseen: not a byte, not its manifest, not its card."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from llmopt import artifact
from llmopt.errors import RequestError
from llmopt.report import card
from llmopt.verification import verify
from tests.artifacts import published, with_card

VERDICT = {"gate": "kl.mean < 1", "model": "w4", "value": 2.0, "passed": False}


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return published(tmp_path / "out", **with_card(gates=[VERDICT]))


def test_what_was_written_verifies(out: Path) -> None:
    assert verify(out) == []
    (out / ".gitattributes").write_text("what git and the hub leave is let be")
    assert verify(out) == []


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "README.md"])
def test_any_changed_byte_is_found(out: Path, name: str) -> None:
    data = bytearray((out / name).read_bytes())
    data[0] ^= 1
    (out / name).write_bytes(bytes(data))
    assert f"content differs: {name}" in verify(out)


def test_missing_added_and_resized_files_are_found(out: Path) -> None:
    (out / "config.json").unlink()
    (out / "extra.bin").write_text("x")
    (out / "sub").mkdir()
    (out / "sub" / "deep").symlink_to("/etc")
    os.mkfifo(out / "pipe")
    (out / "model.safetensors").write_text("short")
    (out / "README.md").unlink()
    assert verify(out) == [
        "missing: README.md", "missing: config.json", "not in the manifest: extra.bin",
        "not in the manifest: pipe", "not in the manifest: sub/deep",
        "size differs: model.safetensors",
    ]  # fmt: skip


def test_a_link_to_the_same_bytes_is_a_file_and_one_to_others_is_not(
    out: Path, tmp_path: Path
) -> None:
    (out / "config.json").rename(tmp_path / "blob")
    (out / "config.json").symlink_to(tmp_path / "blob")
    assert verify(out) == []  # as caches of the hub hold them
    (tmp_path / "blob").write_text("[]")
    assert verify(out) == ["content differs: config.json"]


def test_a_folder_that_leads_elsewhere_holds_nothing(tmp_path: Path) -> None:
    out = published(tmp_path / "out", {"sub/a.json": "{}"})
    (out / "sub").rename(tmp_path / "sub")
    (out / "sub").symlink_to(tmp_path / "sub")
    assert verify(out) == ["missing: sub/a.json", "not in the manifest: sub"]


def rewrite(out: Path, change: Callable[[dict[str, Any]], object], *, seal: bool) -> None:
    manifest = json.loads((out / "llmopt.json").read_text())
    change(manifest)
    (out / "llmopt.json").write_text(json.dumps(artifact.sealed(manifest) if seal else manifest))


@pytest.mark.parametrize(
    "change",
    [
        lambda m: m["gates"][0].update(passed=True),
        lambda m: m["gates"].clear(),
        lambda m: m["settings"].update(method="gptq"),
        lambda m: m["ledger"].append({"name": "w", "actions": ["kept"], "shape": [1], "bytes": 4}),
        lambda m: m["versions"].update(llmopt="9"),
        lambda m: m["parents"][0].update(source="another"),
        lambda m: m.update(seed=1),
        lambda m: m["files"].clear(),
    ],
)
def test_an_edited_manifest_is_found(out: Path, change: Callable[[dict[str, Any]], object]) -> None:
    kept = artifact.read_manifest(out)["manifest_digest"]
    rewrite(out, change, seal=False)
    assert any("llmopt.json was changed" in problem for problem in verify(out))
    rewrite(out, lambda _: None, seal=True)  # with its digest made anew
    found = verify(out, kept=kept)
    assert any("digest is sha256:" in problem for problem in found)


def test_an_edited_list_of_files_does_not_match_the_digest(out: Path) -> None:
    rewrite(out, lambda m: m["files"].clear(), seal=True)
    assert "the manifest's digest does not match its list of files" in verify(out)


def test_a_card_that_says_something_else_is_found(out: Path) -> None:
    """Its own digest in the manifest, and that of the manifest, made anew."""
    text = (out / "README.md").read_text().replace("failed its quality gate", "passed its gate")
    (out / "README.md").write_text(text)
    sha256 = hashlib.sha256(text.encode()).hexdigest()
    rewrite(out, lambda m: m["card"].update(sha256=sha256), seal=True)
    assert verify(out) == ["README.md is not what the manifest implies"]
    rewrite(out, lambda m: m["gates"].clear(), seal=True)
    assert verify(out) == ["README.md is not what the manifest implies"]


def test_another_llmopt_words_its_card_otherwise(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(card, "__version__", "0.0.1")
    out = published(tmp_path / "out", **with_card())
    monkeypatch.undo()
    monkeypatch.setattr(card, "render", lambda _: pytest.fail("rendered"))
    assert verify(out) == []


def test_a_card_that_cannot_be_made_is_a_problem_and_no_crash(out: Path) -> None:
    evidence = {"name": "w4", "metrics": {}, "gates": "all"}
    gate = {"key": "k", "evidence": evidence, "corpus": None}
    rewrite(out, lambda m: m.update(gate=gate), seal=True)
    assert "no README.md can be made from the manifest" in verify(out)


def test_compared_with_a_digest_kept_elsewhere(out: Path) -> None:
    manifest = artifact.read_manifest(out)
    seal = manifest["manifest_digest"]
    plain = seal.removeprefix("sha256:")
    for kept in (seal, plain, plain.upper(), f" {seal}\n"):
        assert verify(out, kept=kept) == []
    assert verify(out, kept="0" * 64) == [f"the manifest's digest is {seal}, not sha256:{'0' * 64}"]
    for kept in ("", plain[:12], plain[:-1], plain + "0", "sha512:" + plain, "g" * 64):
        with pytest.raises(RequestError, match="is no digest"):
            verify(out, kept=kept)
    with pytest.raises(RequestError, match="digest of the contents"):
        verify(out, kept=manifest["digest"])


def test_a_file_beside_its_artifact(tmp_path: Path) -> None:
    file = tmp_path / "m.gguf"
    folder = published(artifact.folder_of(file), {"model.gguf": "weights"})
    artifact.expose(folder)
    assert verify(folder) == []
    file.unlink()
    assert verify(folder) == ["missing: m.gguf"]
    file.write_bytes(b"others'")
    assert verify(folder) == ["content differs: m.gguf"]
    file.write_bytes(b"weights")
    assert verify(folder) == []  # a copy, as rsync makes it


def test_verify_refuses_what_llmopt_did_not_write(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match=r"no llmopt\.json"):
        verify(tmp_path)
