"""`llmopt push` against a hub in a thread: what arrives, what is refused, what is said."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import constants

from llmopt import artifact
from llmopt.report import card
from tests.artifacts import manifest_of, with_card
from tests.cli.conftest import Llmopt
from tests.cli.stub_hub import TOKEN, StubHub, serve
from tests.test_docs import parsed

# huggingface_hub's own call of its HTTP library
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")


def make(folder: Path, *, shards: int = 1, **members: Any) -> Path:
    """A small artifact with the shape of a quantized model's."""
    built = folder.with_name(f".{folder.name}.built")
    built.mkdir()
    for index in range(shards):
        (built / f"model-{index}.safetensors").write_bytes(bytes([index]) * 100)
    (built / "config.json").write_text("{}")
    (built / "odd [name].txt").write_text("a pattern would not match its own name")
    manifest = manifest_of(artifact.describe_files(built), **with_card(**members))
    manifest, text = card.finish(manifest)
    artifact.publish(built, folder, manifest, {"seconds": 1.0}, text)
    return folder


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[StubHub]:
    with serve() as running:
        monkeypatch.setattr(constants, "ENDPOINT", running.endpoint)
        template = f"{running.endpoint}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "no-login"))
        monkeypatch.setattr(constants, "HF_STORED_TOKENS_PATH", str(tmp_path / "no-logins"))
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        yield running


def on_disk(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and path.name != artifact.RUN_RECORD
    }


def arrived(hub: StubHub, repo: str = "me/w4", branch: str = "main") -> dict[str, bytes]:
    files = hub.repos[repo].branches[branch]
    return {path: content for path, content in files.items() if path != ".gitattributes"}


def test_every_byte_arrives_in_one_commit(hub: StubHub, llmopt: Llmopt, tmp_path: Path) -> None:
    w4 = make(tmp_path / "w4", shards=2)
    done = llmopt("push", "w4", "me/w4")
    assert done.code == 0, done.err
    assert done.out == f"{hub.endpoint}/me/w4\n"
    assert arrived(hub) == on_disk(w4)
    assert {"README.md", "llmopt.json", "model-1.safetensors"} < arrived(hub).keys()
    assert hub.repos["me/w4"].private is False
    digest = artifact.read_manifest(w4)["digest"]
    assert hub.repos["me/w4"].messages == [f"w4, gptq, {digest}"]


def test_json_private_branch_and_message(hub: StubHub, llmopt: Llmopt, tmp_path: Path) -> None:
    w4 = make(tmp_path / "w4")
    done = llmopt(
        "push", "w4", "w4", "--private", "--revision", "v1", "--message", "first", "--json"
    )
    assert done.code == 0, done.err
    assert done.document["url"] == f"{hub.endpoint}/me/w4/tree/v1"
    assert done.document["commit"] == "2" * 40
    assert set(done.document["files"]) == on_disk(w4).keys()
    assert arrived(hub, branch="v1") == on_disk(w4)
    assert arrived(hub) == {}
    assert hub.repos["me/w4"].private
    assert hub.repos["me/w4"].messages == ["first"]


def test_what_an_earlier_push_left_goes_and_what_others_put_there_stays(
    hub: StubHub, llmopt: Llmopt, tmp_path: Path
) -> None:
    make(tmp_path / "old", shards=3)
    new = make(tmp_path / "new", shards=1)
    assert llmopt("push", "old", "me/w4").code == 0
    branch = hub.repos["me/w4"].branches["main"]  # as an earlier llmopt wrote its manifest
    branch["llmopt.json"] = json.dumps(json.loads(branch["llmopt.json"]) | {"schema": 1}).encode()
    hub.repos["me/w4"].branches["main"]["picture.png"] = b"mine"
    done = llmopt("push", "new", "me/w4")
    assert done.code == 0, done.err
    assert arrived(hub) == {**on_disk(new), "picture.png": b"mine"}


def test_quiet_says_only_where(hub: StubHub, llmopt: Llmopt, tmp_path: Path) -> None:
    make(tmp_path / "w4", shards=2)
    done = llmopt("push", "w4", "me/w4", "--quiet")
    assert (done.code, done.err) == (0, "")
    assert done.out == f"{hub.endpoint}/me/w4\n"


def test_in_a_process_of_its_own(hub: StubHub, tmp_path: Path) -> None:
    w4 = make(tmp_path / "w4", shards=2)
    environment = os.environ | {
        "HF_ENDPOINT": hub.endpoint, "HF_HUB_DISABLE_XET": "1", "TOKEN_HERE": TOKEN,
        "HF_HOME": str(tmp_path / "hf"),
    }  # fmt: skip
    del environment["HF_TOKEN"]
    done = subprocess.run(
        [sys.executable, "-m", "llmopt", "push", "w4", "me/w4", "-q", "--token-env", "TOKEN_HERE"],
        cwd=tmp_path, env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")
    assert arrived(hub) == on_disk(w4)


def test_what_is_not_fit_to_give_away_is_refused(
    hub: StubHub, llmopt: Llmopt, tmp_path: Path
) -> None:
    damaged = make(tmp_path / "damaged")
    (damaged / "config.json").write_text("[]")
    edited = make(tmp_path / "edited")
    (edited / "README.md").write_text("the best model")
    manifest = artifact.read_manifest(make(tmp_path / "forged"))
    (tmp_path / "forged" / "llmopt.json").write_text(json.dumps(manifest | {"seed": 5}))
    (tmp_path / "foreign").mkdir()
    make(tmp_path / "scores", format="bench")
    for name, code, says in (
        ("damaged", 1, "damaged is not what llmopt wrote: content differs: config.json"),
        ("edited", 1, "content differs: README.md"),
        ("forged", 1, "llmopt.json was changed"),
        ("foreign", 2, "foreign has no llmopt.json"),
        ("scores", 2, "scores holds no model, but results of a bench step"),
        ("nowhere", 2, "there is no folder nowhere"),
    ):
        done = llmopt("push", name, "me/w4")
        assert (done.code, says in done.err) == (code, True), done.err
    assert hub.requests == []


def test_a_failed_gate_needs_a_word(hub: StubHub, llmopt: Llmopt, tmp_path: Path) -> None:
    gates = [{"gate": "kl.mean < 0.1", "value": 2.0, "passed": False, "model": "w4"}]
    make(tmp_path / "w4", gates=gates)
    done = llmopt("push", "w4", "me/w4")
    assert done.code == 2
    assert "failed its quality gate: kl.mean < 0.1" in done.err
    assert hub.repos == {}
    assert llmopt("push", "w4", "me/w4", "--failed-gate-ok").code == 0
    assert b"failed its quality gate" in arrived(hub)["README.md"]


def test_a_public_repository_does_not_become_private(
    hub: StubHub, llmopt: Llmopt, tmp_path: Path
) -> None:
    make(tmp_path / "w4")
    assert llmopt("push", "w4", "me/w4").code == 0
    before = dict(arrived(hub))
    make(tmp_path / "next", shards=2)
    done = llmopt("push", "next", "me/w4", "--private")
    assert done.code == 2
    assert "me/w4 exists and is public: nothing was uploaded" in done.err
    assert arrived(hub) == before


def test_documented_commands_are_understood() -> None:
    page = (Path(__file__).parents[2] / "docs" / "push.md").read_text("utf-8")
    commands = [line for line in page.splitlines() if line.startswith("llmopt push ")]
    assert len(commands) >= 3
    for command in commands:
        assert parsed(shlex.split(command)[1:]).params["repo_id"]


def error_of(done: Any) -> str:
    """The one line that says what went wrong."""
    assert "Traceback" not in done.err
    lines = [line for line in done.err.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1, done.err
    return lines[0]


def test_without_a_token(
    hub: StubHub, llmopt: Llmopt, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make(tmp_path / "w4")
    done = llmopt("push", "w4", "me/w4", "--token-env", "UNSET")
    assert done.code == 2
    assert "UNSET holds no token" in error_of(done)
    monkeypatch.delenv("HF_TOKEN")
    done = llmopt("push", "w4", "me/w4")
    assert done.code == 2
    assert "there is no token for the hub" in error_of(done)
    assert "hf auth login" in done.err
    assert hub.requests == []


@pytest.mark.parametrize(
    ("token", "repo", "code", "says"),
    [
        ("hf_bad", "me/w4", 2, "the hub does not accept the token"),
        (TOKEN, "them/w4", 2, "the token may not write to them/w4: You don't have the rights"),
        (TOKEN, "me/w 4", 2, "'me/w 4' is no name of a repository"),
    ],
)
def test_refusals_of_the_hub(
    token: str, repo: str, code: int, says: str,
    hub: StubHub, llmopt: Llmopt, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    make(tmp_path / "w4")
    monkeypatch.setenv("HF_TOKEN", token)
    done = llmopt("push", "w4", repo)
    assert done.code == code
    assert says in error_of(done)
    assert token not in done.err


@pytest.mark.parametrize(
    ("path", "status", "document", "says"),
    [
        ("/commit/", 413, {"error": "too large"}, "the hub answered 413"),
        ("/storage/", 403, {"error": "no room"}, "the token may not write to me/w4: no room"),
        (
            "validate-yaml", 400, {"errors": [{"message": "license is not known"}]},
            "Invalid metadata in README.md. - license is not known",
        ),
    ],
)  # fmt: skip
def test_a_push_that_breaks_on_the_way_leaves_the_branch_as_it_was(
    path: str, status: int, document: dict[str, Any], says: str,
    hub: StubHub, llmopt: Llmopt, tmp_path: Path,
) -> None:  # fmt: skip
    make(tmp_path / "w4", shards=2)
    hub.refuse[path] = (status, document)
    done = llmopt("push", "w4", "me/w4")
    assert done.code in (1, 2)
    assert says in error_of(done)
    assert arrived(hub) == {}
    hub.refuse.clear()
    assert llmopt("push", "w4", "me/w4").code == 0
    assert arrived(hub) == on_disk(tmp_path / "w4")


def test_without_a_network(
    hub: StubHub, llmopt: Llmopt, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make(tmp_path / "w4")
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")  # nothing listens there
    done = llmopt("push", "w4", "me/w4", "--json")
    assert done.code == 1
    assert "the hub cannot be reached" in error_of(done)
    assert json.loads(done.out)["error"]["exit_code"] == 1
