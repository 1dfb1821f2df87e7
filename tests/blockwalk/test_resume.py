"""A walk that is killed anywhere goes on and ends with the same bytes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from llmopt.blockwalk.state import WalkState
from llmopt.errors import LlmoptError
from tests import models
from tests.blockwalk.conftest import Inlet, Round, calibration, run

BLOCKS = 4
TOTAL = BLOCKS + 1  # and the head


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("source") / "model"
    models.save(folder, "llama", num_hidden_layers=BLOCKS)
    return folder


@pytest.fixture(scope="module")
def whole(model: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[bytes, dict[str, Any]]:
    """The bytes and records of an uninterrupted walk."""
    work = tmp_path_factory.mktemp("whole")
    records = run(model, work, Round(), tokens=calibration(), head=True, save_every=2)
    return (work / "out" / "model.safetensors").read_bytes(), records


class Killed(BaseException):
    """Not an Exception, so that nothing on the way can catch it, like a kill."""


class KillAt(Round):
    """Dies at the n-th inlet it is given."""

    def __init__(self, inlet: int, **options: Any) -> None:
        super().__init__(**options)
        self.left = inlet

    def visit(self, inlet: Inlet) -> None:
        if self.left == 0:
            raise Killed
        self.left -= 1
        super().visit(inlet)


def die_after(block: int) -> Any:
    def on_block(done: int, total: int) -> None:
        assert total == TOTAL
        if done == block:
            raise Killed

    return on_block


def finish(model: Path, work: Path, whole: tuple[bytes, dict[str, Any]], **options: Any) -> int:
    """Run to the end, check the result, and return how many blocks were left to do."""
    told: list[int] = []
    options = {"head": True, "save_every": 2, **options}
    records = run(
        model,
        work,
        Round(),
        tokens=calibration(),
        on_block=lambda done, _: told.append(done),
        **options,
    )
    assert (work / "out" / "model.safetensors").read_bytes() == whole[0]
    assert records == whole[1]
    return len(told)


@pytest.mark.parametrize("block", range(1, TOTAL + 1))
@pytest.mark.parametrize("save_every", [1, 2, 100])
def test_killed_after_a_block(
    model: Path, tmp_path: Path, whole: tuple[bytes, dict[str, Any]], block: int, save_every: int
) -> None:
    options = {"head": True, "save_every": save_every, "tokens": calibration()}
    with pytest.raises(Killed):
        run(model, tmp_path, Round(), on_block=die_after(block), **options)
    assert finish(model, tmp_path, whole, save_every=save_every) == TOTAL - block


@pytest.mark.parametrize("inlet", [0, 3, 9, 14, 16])
def test_killed_inside_a_block(
    model: Path, tmp_path: Path, whole: tuple[bytes, dict[str, Any]], inlet: int
) -> None:
    with pytest.raises(Killed):
        run(model, tmp_path, KillAt(inlet), tokens=calibration(), head=True, save_every=2)
    assert finish(model, tmp_path, whole) == TOTAL - inlet // 4


@pytest.mark.parametrize("save", range(1, 9))
def test_killed_while_writing_a_file(
    model: Path,
    tmp_path: Path,
    whole: tuple[bytes, dict[str, Any]],
    monkeypatch: pytest.MonkeyPatch,
    save: int,
) -> None:
    """Just before the n-th rename of a finished file: half of the work is on disk, unnamed."""
    renamed = iter(range(1, 100))
    replace = Path.replace

    def dying(self: Path, target: Path) -> Path:
        if next(renamed) == save:
            raise Killed
        return replace(self, target)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", dying)
        with pytest.raises(Killed):
            run(model, tmp_path, Round(), tokens=calibration(), head=True, save_every=2)
    finish(model, tmp_path, whole)


def test_killed_again_and_again(
    model: Path, tmp_path: Path, whole: tuple[bytes, dict[str, Any]]
) -> None:
    for _ in range(TOTAL):
        with pytest.raises(Killed):
            run(model, tmp_path, KillAt(4), tokens=calibration(), head=True, save_every=2)
        if len(list((tmp_path / "parts").glob("block-*.safetensors"))) == BLOCKS:
            break
    assert finish(model, tmp_path, whole) == 1


def test_killed_after_the_walk(
    model: Path, tmp_path: Path, whole: tuple[bytes, dict[str, Any]]
) -> None:
    assert finish(model, tmp_path, whole) == TOTAL
    assert finish(model, tmp_path, whole) == 0


@pytest.mark.parametrize(("family", "sequential"), [("gpt2", True), ("gpt_neox", False)])
def test_replayed_blocks_of_other_families(tmp_path: Path, family: str, sequential: bool) -> None:
    """Conv1D weights and tuples between blocks, replayed from their stored codes."""
    models.save(tmp_path / "model", family)
    options = {"tokens": calibration(), "head": True}
    whole, killed = Round(sequential=sequential), KillAt(6, sequential=sequential)
    run(tmp_path / "model", tmp_path / "whole", whole, **options)
    with pytest.raises(Killed):
        run(tmp_path / "model", tmp_path / "part", killed, **options)
    run(tmp_path / "model", tmp_path / "part", whole, **options)
    first, second = (tmp_path / name / "out" / "model.safetensors" for name in ("whole", "part"))
    assert first.read_bytes() == second.read_bytes()


def test_a_walk_without_data_goes_on(model: Path, tmp_path: Path) -> None:
    run(model, tmp_path / "whole", Round(), tokens=None, head=True)
    with pytest.raises(Killed):
        run(model, tmp_path / "part", KillAt(6), tokens=None, head=True)
    told: list[int] = []
    options = {"head": True, "on_block": lambda done, _: told.append(done)}
    run(model, tmp_path / "part", Round(), tokens=None, **options)
    assert told == [2, 3, 4, 5]
    first, second = (tmp_path / name / "out" / "model.safetensors" for name in ("whole", "part"))
    assert first.read_bytes() == second.read_bytes()


def test_other_settings_start_anew(
    model: Path, tmp_path: Path, whole: tuple[bytes, dict[str, Any]]
) -> None:
    with pytest.raises(Killed):
        run(model, tmp_path, Round(), tokens=models.tokens(3, 8), head=True, on_block=die_after(3))
    assert finish(model, tmp_path, whole) == TOTAL


def test_the_threads_it_began_with_are_used(model: Path, tmp_path: Path) -> None:
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        with pytest.raises(Killed):
            run(model, tmp_path, Round(), tokens=calibration(), head=True, on_block=die_after(1))
        torch.set_num_threads(1)
        used: list[int] = []
        options = {"head": True, "on_block": lambda *_: used.append(torch.get_num_threads())}
        run(model, tmp_path, Round(), tokens=calibration(), **options)
        assert used == [2] * (TOTAL - 1)
        assert torch.get_num_threads() == 1
    finally:
        torch.set_num_threads(before)


def test_two_walks_cannot_share_a_folder(model: Path, tmp_path: Path) -> None:
    with (
        WalkState(tmp_path / "state").locked(),
        pytest.raises(LlmoptError, match="another process is working"),
    ):
        run(model, tmp_path, Round(), tokens=calibration())
