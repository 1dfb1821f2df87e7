"""Activations in a file: the same bytes as in memory, of walks that are killed, too."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from llmopt.blockwalk.activations import FileActivations, Room
from llmopt.blockwalk.gradient import walk_backward
from llmopt.formats.checkpoint import Checkpoint
from tests import models
from tests.blockwalk.conftest import Round, calibration, run
from tests.blockwalk.test_gradient import Collect


class Killed(BaseException):
    """Not an Exception, so that nothing on the way can catch it, like a kill."""


def result(work: Path) -> bytes:
    return (work / "out" / "model.safetensors").read_bytes()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_file_gives_back_what_was_put_in(tmp_path: Path, dtype: torch.dtype) -> None:
    values = torch.randn(5, 3, 4).to(dtype)
    kept = Room(tmp_path).make("it", values.shape, dtype)
    assert isinstance(kept, FileActivations)
    for rows in (slice(3, 5), slice(0, 3)):
        kept[rows] = values[rows]
    assert torch.equal(kept[1:4], values[1:4])
    kept[1:2] = values[4:5].float()
    assert torch.equal(kept[0:2], values[[0, 4]])
    Room(tmp_path).give_back(kept)
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize("family", ["llama", "gpt2", "gpt_neox", "qwen3_moe"])
def test_a_walk_gives_the_same_bytes(tmp_path: Path, family: str) -> None:
    models.save(tmp_path / "model", family)
    made = []
    for in_file in (False, True):
        work = tmp_path / str(in_file)
        rounding = Round(sequential=True)
        options = {"head": True, "save_every": 1, "activations_in_file": in_file}
        run(tmp_path / "model", work, rounding, tokens=calibration(), **options)
        made.append(result(work))
        assert [path.name for path in (work / "state").iterdir() if path.name != "lock"] == [
            "walk.json"
        ]
    assert made[0] == made[1]


@pytest.mark.parametrize(("first", "second"), [(True, True), (True, False), (False, True)])
def test_a_killed_walk_goes_on_in_either_way(tmp_path: Path, first: bool, second: bool) -> None:
    models.save(tmp_path / "model", "llama", num_hidden_layers=4)
    run(tmp_path / "model", tmp_path / "whole", Round(), tokens=calibration())

    def die(done: int, _: int) -> None:
        if done == 3:
            raise Killed

    work, told = tmp_path / "part", list[int]()
    options = {"tokens": calibration(), "save_every": 2}
    with pytest.raises(Killed):
        run(tmp_path / "model", work, Round(), on_block=die, activations_in_file=first, **options)
    run(
        tmp_path / "model", work, Round(), activations_in_file=second,
        on_block=lambda done, _: told.append(done), **options,
    )  # fmt: skip
    assert told == [4]
    assert result(work) == result(tmp_path / "whole")


def test_nothing_is_held_but_a_batch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No tensor of the size of all activations is made while a walk has them in a file."""
    models.save(tmp_path / "model", "llama")
    made: list[torch.Size] = []
    read = FileActivations.__getitem__

    def noting(self: FileActivations, rows: slice) -> torch.Tensor:
        value = read(self, rows)
        made.append(value.shape)
        return value

    monkeypatch.setattr(FileActivations, "__getitem__", noting)
    run(
        tmp_path / "model", tmp_path, Round(sequential=True), tokens=calibration(), save_every=1,
        activations_in_file=True,
    )  # fmt: skip
    assert {shape[0] for shape in made} == {1, 2}


def test_the_backward_walk_sees_the_same(tmp_path: Path) -> None:
    models.save(tmp_path / "model", "llama")
    checkpoint = Checkpoint.open(tmp_path / "model")
    found = []
    for in_file in (False, True):
        collect, state = Collect(until=0 if in_file else -1), tmp_path / str(in_file)
        options = {"batch_size": 2, "activations_in_file": in_file}
        if in_file:
            with pytest.raises(KeyboardInterrupt):
                walk_backward(checkpoint, calibration(), collect, state, **options)
        walk_backward(checkpoint, calibration(), collect, state, **options)
        found.append(collect.found)
        assert not any(state.glob("*.scratch"))
    assert found[0].keys() == found[1].keys()
    for name, (fisher, hessian) in found[0].items():
        assert torch.equal(fisher, found[1][name][0])
        assert torch.equal(hessian, found[1][name][1])


def test_the_embedding_is_read_by_the_rows_of_the_text(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    models.save(tmp_path / "model", "gemma3_text")
    tokens, seen = calibration(), list[torch.Tensor]()
    embed = nn.Embedding.forward

    def noting(self: nn.Embedding, ids: torch.Tensor) -> torch.Tensor:
        assert len(self.weight) == len(tokens.unique()) < self.num_embeddings
        seen.append(ids)
        return embed(self, ids)

    monkeypatch.setattr(nn.Embedding, "forward", noting)
    run(tmp_path / "model", tmp_path, Round(), tokens=tokens)
    assert torch.equal(tokens.unique()[torch.cat(seen)], tokens)
