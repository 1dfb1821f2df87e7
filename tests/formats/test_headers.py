"""Model directories: what is read from headers, and every way in which they can be damaged."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from llmopt.errors import RequestError
from llmopt.formats.headers import read_headers

TENSORS = {
    "a.weight": torch.arange(6, dtype=torch.float32).reshape(2, 3),
    "b.weight": torch.arange(4, dtype=torch.bfloat16),
}


def make(folder: Path, tensors: dict[str, torch.Tensor] = TENSORS) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text('{"model_type": "llama"}')
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    return folder


def make_sharded(folder: Path) -> Path:
    make(folder)
    (folder / "model.safetensors").unlink()
    save_file({"a.weight": TENSORS["a.weight"]}, folder / "one.safetensors")
    save_file({"b.weight": TENSORS["b.weight"]}, folder / "two.safetensors")
    write_index(folder, {"a.weight": "one.safetensors", "b.weight": "two.safetensors"})
    return folder


def write_index(folder: Path, weight_map: object) -> None:
    text = json.dumps({"metadata": {}, "weight_map": weight_map})
    (folder / "model.safetensors.index.json").write_text(text)


def with_header(folder: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    """Rewrite the header of the folder's file, leaving the data as it is."""
    path = folder / "model.safetensors"
    raw = path.read_bytes()
    length = int.from_bytes(raw[:8], "little")
    header = json.loads(raw[8 : 8 + length])
    change(header)
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + raw[8 + length :])


def test_headers_say_where_each_tensor_lies(tmp_path: Path) -> None:
    folder = make(tmp_path / "model")
    (folder / "tokenizer.json").write_text("{}")
    (folder / "training_args.bin").write_bytes(b"x")
    (folder / ".gitattributes").write_text("")
    headers = read_headers(folder)
    assert headers.config == {"model_type": "llama"}
    assert headers.side_files.carried == ["tokenizer.json"]
    assert {name: (t.dtype, t.shape) for name, t in headers.tensors.items()} == {
        "a.weight": ("F32", (2, 3)),
        "b.weight": ("BF16", (4,)),
    }
    header = headers.tensors["a.weight"]
    raw = header.file.read_bytes()[header.start : header.end]
    assert raw == TENSORS["a.weight"].numpy().tobytes()


def test_shards_are_found_through_the_index(tmp_path: Path) -> None:
    headers = read_headers(make_sharded(tmp_path / "model"))
    assert {name: t.file.name for name, t in headers.tensors.items()} == {
        "a.weight": "one.safetensors",
        "b.weight": "two.safetensors",
    }


def test_reading_headers_imports_no_torch(tmp_path: Path) -> None:
    make(tmp_path / "model")
    code = (
        "import sys, pathlib; from llmopt.formats.headers import read_headers;"
        "from llmopt.formats.quantization import read_contents;"
        "from llmopt.specs.families import family_of;"
        "read_headers(pathlib.Path(sys.argv[1])); assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path / "model")], check=True)


def truncate(path: Path, size: int) -> None:
    path.write_bytes(path.read_bytes()[:size])


def set_length(folder: Path, length: int) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(length.to_bytes(8, "little") + path.read_bytes()[8:])


def set_entry(folder: Path, **values: object) -> None:
    with_header(folder, lambda header: header["b.weight"].update(values))


DAMAGE: dict[str, tuple[Callable[[Path], object], str]] = {
    "empty file": (lambda f: truncate(f / "model.safetensors", 0), "truncated"),
    "cut in the header": (lambda f: truncate(f / "model.safetensors", 40), "truncated"),
    "cut in the data": (
        lambda f: truncate(f / "model.safetensors", -1),
        r"truncated: tensor b.weight ends at byte",
    ),
    "header length beyond the file": (lambda f: set_length(f, 1 << 40), "truncated"),
    "header length too short": (lambda f: set_length(f, 16), "not valid JSON"),
    "header is a list": (
        lambda f: (f / "model.safetensors").write_bytes((2).to_bytes(8, "little") + b"[]"),
        "not a JSON object",
    ),
    "no tensor": (
        lambda f: (f / "model.safetensors").write_bytes((2).to_bytes(8, "little") + b"{}"),
        "without a single tensor",
    ),
    "overlap": (lambda f: set_entry(f, data_offsets=[0, 8]), "overlaps another"),
    "hole": (lambda f: set_entry(f, data_offsets=[32, 40]), "truncated"),
    "negative offset": (lambda f: set_entry(f, data_offsets=[-8, 0]), "invalid offsets"),
    "offsets out of order": (lambda f: set_entry(f, data_offsets=[8, 0]), "invalid offsets"),
    "size against shape": (lambda f: set_entry(f, shape=[5]), "has 8 bytes, but BF16"),
    "fractional shape": (lambda f: set_entry(f, shape=[4.0]), "invalid shape"),
    "unknown dtype": (lambda f: set_entry(f, dtype="F13"), "unknown dtype 'F13'"),
    "no header": (lambda f: with_header(f, lambda h: h.update({"b.weight": 3})), "no header"),
    "bytes of no tensor": (
        lambda f: with_header(f, lambda h: h.pop("b.weight")),
        "belong to no tensor",
    ),
    "config not JSON": (
        lambda f: (f / "config.json").write_text('{"a":\n 1,}'),
        "config.json is not valid JSON: .* line 2",
    ),
    "config not UTF-8": (lambda f: (f / "config.json").write_bytes(b'{"\xff"}'), "not UTF-8"),
    "config key twice": (
        lambda f: (f / "config.json").write_text('{"a": 1, "a": 2}'),
        "the key 'a' twice",
    ),
    "config with a huge integer": (
        lambda f: (f / "config.json").write_text('{"a": ' + "9" * 5000 + "}"),
        "not valid JSON",
    ),
    "no config": (lambda f: (f / "config.json").unlink(), "no config.json"),
    "no weights": (lambda f: (f / "model.safetensors").unlink(), "no weights"),
    "pickled weights": (
        lambda f: (f / "model.safetensors").rename(f / "pytorch_model.bin"),
        "only pickled weights",
    ),
    "two files and no index": (
        lambda f: (
            [save_file(TENSORS, f / name) for name in ("x.safetensors", "y.safetensors")]
            and (f / "model.safetensors").unlink()
        ),
        "2 safetensors files but no",
    ),
}


@pytest.mark.parametrize("fault", DAMAGE)
def test_damage_is_refused_in_one_sentence(tmp_path: Path, fault: str) -> None:
    folder = make(tmp_path / "model")
    damage, message = DAMAGE[fault]
    damage(folder)
    with pytest.raises(RequestError, match=message) as caught:
        read_headers(folder)
    assert "\n" not in caught.value.message


INDEX_DAMAGE: dict[str, tuple[object, str]] = {
    "missing shard": (
        {"a.weight": "one.safetensors", "b.weight": "three.safetensors"},
        "names three.safetensors, which is missing",
    ),
    "tensor in the index only": (
        {"a.weight": "one.safetensors", "b.weight": "two.safetensors", "c": "two.safetensors"},
        "puts tensor c in two.safetensors, which does not hold it",
    ),
    "tensor in a shard only": (
        {"a.weight": "one.safetensors", "x": "two.safetensors"},
        "puts tensor x",
    ),
    "tensor not in the index": ({"a.weight": "one.safetensors"}, None),
    "tensor in another shard": (
        {"a.weight": "two.safetensors", "b.weight": "one.safetensors"},
        "but it is in",
    ),
    "outside the directory": ({"a.weight": "../one.safetensors"}, "not a file beside it"),
    "no map": ([], "no weight_map"),
}


@pytest.mark.parametrize("fault", INDEX_DAMAGE)
def test_an_index_that_does_not_fit_is_refused(tmp_path: Path, fault: str) -> None:
    folder = make_sharded(tmp_path / "model")
    weight_map, message = INDEX_DAMAGE[fault]
    if message is None:
        save_file(TENSORS, folder / "one.safetensors")
        message = "holds tensor b.weight, which .* lacks"
    write_index(folder, weight_map)
    with pytest.raises(RequestError, match=message):
        read_headers(folder)


def test_a_tensor_in_two_shards_is_refused(tmp_path: Path) -> None:
    folder = make_sharded(tmp_path / "model")
    save_file(TENSORS, folder / "two.safetensors")
    with pytest.raises(RequestError, match=r"a\.weight is in both one.safetensors and two"):
        read_headers(folder)


def test_the_pickle_error_says_what_to_type(tmp_path: Path) -> None:
    folder = make(tmp_path / "model")
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(RequestError) as caught:
        read_headers(folder)
    assert "--allow-pickle" in str(caught.value.hint)


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "tokenizer.json"])
def test_a_pipe_is_not_waited_for(tmp_path: Path, name: str) -> None:
    folder = make(tmp_path / "model")
    (folder / name).unlink(missing_ok=True)
    os.mkfifo(folder / name)
    with pytest.raises(RequestError, match=f"{name} is a pipe"):
        read_headers(folder)
