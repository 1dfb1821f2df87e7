"""What comes with a model is carried over, folders included; other weights and code are not."""

from __future__ import annotations

import fnmatch
import json
import os
from pathlib import Path

import pytest

from llmopt.formats.checkpoint import Checkpoint
from llmopt.formats.side_files import (
    CODE,
    LINK,
    NO_FILE,
    NO_TEXT,
    NOT_FETCHED,
    OTHER_WEIGHTS,
    side_files,
)
from tests import models
from tests.verbs.conftest import quantized

CARRIED = [
    "LICENSE",
    "additional_chat_templates/tool_use.jinja",
    "deep/er/and/deeper.txt",
    "merges.TIKTOKEN",
    "pictures/logo.png",
    "pictures/README.md",
    "tokenizer.json",
]
LEFT_OUT = {
    "pytorch_model.bin": OTHER_WEIGHTS,
    "pytorch_model.bin.index.json": OTHER_WEIGHTS,
    "PyTorch_Model.BIN": OTHER_WEIGHTS,
    "consolidated.00.pth": OTHER_WEIGHTS,
    "consolidated.safetensors": OTHER_WEIGHTS,
    "training_args.bin": OTHER_WEIGHTS,
    "tf_model.h5": OTHER_WEIGHTS,
    "flax_model.msgpack": OTHER_WEIGHTS,
    "model.gguf": OTHER_WEIGHTS,
    "stray.safetensors": OTHER_WEIGHTS,
    "modeling_mine.py": CODE,
    "kernel.so": CODE,
    "kernel.so.1": CODE,
}
FOLDERS = {
    "original/params.json": ("original/", OTHER_WEIGHTS),
    "onnx/config.json": ("onnx/", OTHER_WEIGHTS),
    "4bit/model.safetensors": ("4bit/", OTHER_WEIGHTS),
    "4bit/tokenizer.json": ("4bit/", OTHER_WEIGHTS),
    "__pycache__/x.txt": ("__pycache__/", CODE),
}
SILENT = [".gitattributes", ".git/config", ".cache/huggingface/x.json", "pictures/.DS_Store"]
OWN = ["config.json", "quantize_config.json", "README.md", "llmopt.json", "deep/llmopt.run.json"]


def put(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(name)


def test_what_is_carried_over_and_why_the_rest_is_not(tmp_path: Path) -> None:
    put(tmp_path, *CARRIED, *LEFT_OUT, *FOLDERS, *SILENT, *OWN, "model.safetensors")
    found = side_files(tmp_path, frozenset({"model.safetensors"}))
    assert found.carried == sorted(CARRIED)
    assert found.left_out == LEFT_OUT | dict(FOLDERS.values())


def test_what_would_be_left_out_is_not_fetched() -> None:
    """But for names in capitals: fnmatch goes by case."""

    def fetched(name: str) -> bool:
        return not any(fnmatch.fnmatch(name, pattern) for pattern in NOT_FETCHED)

    wanted = [*CARRIED, "config.json", "model.safetensors", "model-00001-of-00002.safetensors"]
    assert [name for name in wanted if not fetched(name)] == []
    plain = [*LEFT_OUT, *FOLDERS, *SILENT]
    assert {name for name in plain if fetched(name)} == {
        "pytorch_model.bin.index.json", "PyTorch_Model.BIN", "stray.safetensors", "kernel.so.1",
        "4bit/tokenizer.json", "__pycache__/x.txt",
    }  # fmt: skip


def test_links_are_followed_no_further_than_the_model(tmp_path: Path) -> None:
    folder, secret = tmp_path / "model", tmp_path / "secret.txt"
    secret.write_text("secret")
    put(folder, "config.json", "inside.txt")
    (folder / "again.txt").symlink_to("inside.txt")
    (folder / "notes.txt").symlink_to(secret)
    (folder / "gone.txt").symlink_to("nothing")
    (folder / "round.txt").symlink_to("round.txt")
    (folder / "elsewhere").symlink_to(tmp_path)
    os.mkfifo(folder / "pipe.txt")
    found = side_files(folder)
    assert found.carried == ["again.txt", "inside.txt"]
    assert found.left_out == {
        "notes.txt": LINK, "gone.txt": NO_FILE, "round.txt": NO_FILE, "elsewhere": LINK,
        "pipe.txt": NO_FILE,
    }  # fmt: skip


def test_a_name_that_is_no_text_is_left_out(tmp_path: Path) -> None:
    (tmp_path / os.fsdecode(b"caf\xe9.txt")).write_text("")
    assert side_files(tmp_path).left_out == {"caf\ufffd.txt": NO_TEXT}


def in_hub_cache(source: Path, cache: Path) -> Path:
    """The folder as the hub's cache holds it: every file a link to a blob."""
    blobs, snapshot = cache / "blobs", cache / "snapshots" / "0123"
    blobs.mkdir(parents=True)
    for index, path in enumerate(sorted(p for p in source.rglob("*") if p.is_file())):
        link = snapshot / path.relative_to(source)
        link.parent.mkdir(parents=True, exist_ok=True)
        (blobs / f"{index:04x}").write_bytes(path.read_bytes())
        link.symlink_to(os.path.relpath(blobs / f"{index:04x}", link.parent))
    return snapshot


@pytest.mark.parametrize("layout", ["folder", "hub"])
def test_quantize_carries_folders_over_and_says_what_it_leaves(tmp_path: Path, layout: str) -> None:
    folder = tmp_path / "model"
    models.save_with_tokenizer(folder)
    put(folder, *CARRIED[:3], "modeling_mine.py", "original/params.json", "pytorch_model.bin")
    config = json.loads((folder / "config.json").read_text())
    config["auto_map"] = {"AutoModelForCausalLM": "modeling_mine.Mine"}
    (folder / "config.json").write_text(json.dumps(config))
    if layout == "hub":
        folder = in_hub_cache(folder, tmp_path / "models--someone--tiny")
    for text in ("text.txt", "held-out.txt"):
        (tmp_path / text).write_text(f"Plain {text} to read. " * 400)
    made = quantized(tmp_path, folder, method="rtn")
    for name in [*CARRIED[:3], "tokenizer.json"]:
        assert (made.path / name).read_bytes() == (folder / name).read_bytes()
        assert not (made.path / name).is_symlink()
    assert made.manifest["evidence"]["left_out"] == {
        "auto_map in config.json": CODE, "modeling_mine.py": CODE, "original/": OTHER_WEIGHTS,
        "pytorch_model.bin": OTHER_WEIGHTS,
    }  # fmt: skip
    assert "auto_map" not in json.loads((made.path / "config.json").read_text())
    listed = {file["path"] for file in made.manifest["files"]}
    assert "additional_chat_templates/tool_use.jinja" in listed
    assert Checkpoint.open(made.path).side_files.left_out == {}
