"""Pickled weights as a safetensors copy."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from llmopt.errors import RequestError
from llmopt.formats.checkpoint import Checkpoint
from llmopt.formats.pickles import unpickled
from llmopt.formats.side_files import side_files
from tests import models


@pytest.fixture
def tensors(tmp_path: Path) -> dict[str, torch.Tensor]:
    """Those of tmp_path / "model", whose safetensors are gone."""
    models.save_with_tokenizer(tmp_path / "model", "llama")
    found = load_file(tmp_path / "model" / "model.safetensors")
    (tmp_path / "model" / "model.safetensors").unlink()
    return found


def test_a_copy_is_made_once(tmp_path: Path, tensors: dict[str, torch.Tensor]) -> None:
    model, cache, half = tmp_path / "model", tmp_path / "cache", len(tensors) // 2
    names = list(tensors)
    torch.save({name: tensors[name] for name in names[:half]}, model / "one.bin")
    torch.save({name: tensors[name] for name in names[half:]}, model / "two.bin")
    torch.save({"lr": 1.0}, model / "training_args.bin")
    with pytest.raises(RequestError, match="only pickled weights"):
        Checkpoint.open(model)
    copy = unpickled(model, cache)
    checkpoint = Checkpoint.open(copy)
    assert set(checkpoint.names) == set(names)
    assert all(torch.equal(checkpoint.read(name), tensors[name]) for name in names)
    assert "tokenizer.json" in checkpoint.side_files.carried
    assert unpickled(model, cache) == copy
    assert unpickled(copy, cache) == copy
    assert [path.name for path in cache.iterdir()] == [copy.name]
    index = dict.fromkeys(names[:half], "one.bin") | dict.fromkeys(names[half:], "two.bin")
    (model / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": index}))
    (model / "stray.bin").write_bytes(b"no pickle")
    assert set(Checkpoint.open(unpickled(model, cache)).names) == set(names)


def test_a_copy_follows_the_files_beside_the_weights_and_says_what_stayed_behind(
    tmp_path: Path, tensors: dict[str, torch.Tensor]
) -> None:
    model, cache = tmp_path / "model", tmp_path / "cache"
    torch.save(tensors, model / "pytorch_model.bin")
    torch.save({"lr": 1.0}, model / "training_args.bin")
    (model / "modeling_x.py").write_text("")
    others = Checkpoint.open(unpickled(model, cache)).side_files
    assert others.left_out == {"modeling_x.py": "code", "training_args.bin": "other weights"}
    assert all(not name.startswith(".") for name in others.carried)
    (model / "NOTICE").write_text("new")
    assert "NOTICE" in Checkpoint.open(unpickled(model, cache)).side_files.carried
    (model / "modeling_x.py").unlink()
    assert "modeling_x.py" not in Checkpoint.open(unpickled(model, cache)).side_files.left_out


def test_what_a_model_says_of_itself_is_no_note_of_ours(tmp_path: Path) -> None:
    for text in ("[1]", '{"a": 1}', "{", "[" * 100_000):
        (tmp_path / ".llmopt-left-out.json").write_text(text)
        assert side_files(tmp_path).left_out == {}


class _Harm:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return (print, ("ran",))


def test_what_is_not_plain_tensors_is_refused(
    tmp_path: Path, tensors: dict[str, torch.Tensor], capsys: pytest.CaptureFixture[str]
) -> None:
    model, cache = tmp_path / "model", tmp_path / "cache"
    torch.save({"x": _Harm()}, model / "model.bin")
    with pytest.raises(RequestError, match="not a file of plain tensors"):
        unpickled(model, cache)
    assert "ran" not in capsys.readouterr().out
    torch.save([1, 2], model / "model.bin")
    with pytest.raises(RequestError, match="dictionary of tensors"):
        unpickled(model, cache)
    torch.save(tensors, model / "model.bin")
    torch.save(dict(list(tensors.items())[:1]), model / "again.bin")
    with pytest.raises(RequestError, match="is in both"):
        unpickled(model, cache)
    assert list(cache.iterdir()) == []
