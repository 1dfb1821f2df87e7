"""What a block need not compute again, and that sparing it changes nothing."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from llmopt.blockwalk import shortcuts
from llmopt.blockwalk.activations import FileActivations, Room
from llmopt.blockwalk.shortcuts import Shortcuts
from llmopt.formats.checkpoint import Checkpoint
from tests import models
from tests.blockwalk.conftest import Round, Watch, calibration, run


def counted(monkeypatch: pytest.MonkeyPatch) -> Counter[int]:
    """How often each linear runs, by the id of its weight's owner."""
    calls: Counter[int] = Counter()
    forward = nn.Linear.forward

    def counting(self: nn.Linear, x: torch.Tensor) -> torch.Tensor:
        calls[id(self)] += 1
        return forward(self, x)

    monkeypatch.setattr(nn.Linear, "forward", counting)
    return calls


@pytest.mark.parametrize("family", models.FAMILY_SETTINGS)
def test_sparing_changes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, family: str
) -> None:
    models.save(tmp_path / "model", family)
    monkeypatch.setattr(shortcuts, "KEPT_LITTLE", 0)
    made: list[bytes] = []
    for way in ("memory", "file", "nothing kept"):
        monkeypatch.setattr(shortcuts, "KEPT_SHARE", 2 if way == "memory" else 0)
        if way == "nothing kept":
            monkeypatch.setattr(Shortcuts, "note", lambda *_: None)
        work = tmp_path / way
        work.mkdir()
        run(tmp_path / "model", work, Round(sequential=True), tokens=calibration(), head=True)
        made.append((work / "out" / "model.safetensors").read_bytes())
    assert made[0] == made[1] == made[2]


@pytest.mark.parametrize("little", [0, 256 << 20])
def test_modules_are_computed_once_and_once_to_see_where_they_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, little: int
) -> None:
    """Three batches, and one to learn: of two blocks, but for the last round of the last one.

    An MLP's inputs are kept in a file where they are neither little nor narrow.
    """
    monkeypatch.setattr(shortcuts, "KEPT_LITTLE", little)
    files: list[int] = []
    begun = FileActivations.__init__

    def noting(self: FileActivations, path: Path, shape: Sequence[int], dtype: torch.dtype) -> None:
        files.append(shape[-1])
        begun(self, path, shape, dtype)

    monkeypatch.setattr(FileActivations, "__init__", noting)
    models.save(tmp_path / "model", "llama", intermediate_size=160)  # too wide to be kept
    calls = counted(monkeypatch)
    run(tmp_path / "model", tmp_path, Round(sequential=True), tokens=calibration())
    # q, k, v, gate and up of both, and o and down that show where attention and MLP end
    assert Counter(calls.values()) == {4: 5 + 3, 3: 2 + 3}
    assert files == ([] if little else [160, 160])
    assert not list(tmp_path.rglob("*.scratch"))


def test_a_walk_that_only_looks_runs_a_block_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    models.save(tmp_path / "model", "llama")
    calls = counted(monkeypatch)
    run(tmp_path / "model", tmp_path, Watch(), tokens=calibration())
    assert Counter(calls.values()) == {3: 2 * 7}  # three batches, two blocks of seven linears


class Wrapped(nn.Module):
    """A block whose inner module ends in a linear, or nearly so."""

    def __init__(self, *, changed: str) -> None:
        super().__init__()
        self.first, self.last, self.changed = nn.Linear(8, 8), nn.Linear(8, 8), changed

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, None]:
        y = self.last(self.first(x))
        if self.changed == "in place":
            y.mul_(2)
        return (y * 2 if self.changed == "after" else y), None


class Known:
    """As much of a skeleton as shortcuts need."""

    device = torch.device("cpu")
    carries_state = False

    def __init__(self, module: nn.Module) -> None:
        self._modules: dict[str, Any] = {"block.inner": module}

    def holder(self, name: str) -> nn.Module:
        return self.module(name.rpartition(".")[0])

    def module(self, name: str) -> nn.Module:
        found = self._modules.get(name)
        return found or getattr(self._modules["block.inner"], name.rpartition(".")[2])


def passes(module: Wrapped, x: torch.Tensor, known: Shortcuts, count: int) -> list[torch.Tensor]:
    hook = module.last.register_forward_pre_hook(
        lambda _, given: known.note("block.inner.last", given[0])
    )
    outputs = []
    for _ in range(count):
        for start in range(0, len(x), 2):
            with known.batch(slice(start, start + 2)):
                outputs.append(module(x[start : start + 2])[0])
        hook.remove()
    return outputs


@pytest.mark.parametrize("changed", ["", "after", "in place"])
@torch.no_grad()
def test_only_a_module_that_ends_in_the_linear_is_spared(changed: str) -> None:
    module, x = Wrapped(changed=changed), torch.randn(4, 3, 8)
    calls = 0

    def count(*_: object) -> None:
        nonlocal calls
        calls += 1

    module.first.register_forward_hook(count)
    with Shortcuts(Known(module), x, Room()) as known:  # type: ignore[arg-type]
        outputs = passes(module, x, known, 3)
        assert calls == (6 if changed else 3)
        for again in (outputs[2:4], outputs[4:6]):
            assert all(torch.equal(a, b) for a, b in zip(again, outputs[:2], strict=True))
    assert "forward" not in vars(module)


def test_a_linear_that_is_changed_inside_ends_it() -> None:
    module, x = Wrapped(changed=""), torch.randn(2, 3, 8)
    with Shortcuts(Known(module), x, Room()) as known:  # type: ignore[arg-type]
        passes(module, x, known, 1)
        known.forget([("block.inner.last",), ("block.other.first",)])
        with known.batch(slice(0, 2)):
            module(x)
        assert "forward" in vars(module)
        known.forget([("block.inner.first",)])
        assert "forward" not in vars(module)


@torch.no_grad()
def test_outputs_take_the_place_of_inputs_and_do_not_outlive_a_second_look() -> None:
    """A pass that asks for the inputs again after the projection was computed gets them."""
    module, x = Wrapped(changed=""), torch.randn(4, 3, 8)
    with Shortcuts(Known(module), x, Room()) as known:  # type: ignore[arg-type]
        calls: list[int] = []
        outputs = passes(module, x, known, 2)
        module.last.register_forward_hook(lambda *_: calls.append(1))
        with known.batch(slice(0, 2)):
            module(x[:2])[0].zero_()
            assert torch.equal(module(x[:2])[0], outputs[0])
        assert not calls
        known.forget([("block.inner.last",)])
        assert "forward" not in vars(module)


def test_what_is_kept_in_memory_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shortcuts, "KEPT_LITTLE", 0)
    models.save(tmp_path / "model", "llama", intermediate_size=160)
    width = Checkpoint.open(tmp_path / "model").config["hidden_size"]
    kept: list[int] = []
    make = Room.make

    def noting(self: Room, name: str, shape: Sequence[int], dtype: torch.dtype) -> Any:
        found = make(self, name, shape, dtype)
        if name.startswith("inputs.") and isinstance(found, torch.Tensor):
            kept.append(shape[-1])
        return found

    monkeypatch.setattr(Room, "make", noting)
    run(tmp_path / "model", tmp_path, Round(sequential=True), tokens=calibration())
    assert kept == [width, width]  # attention's, of two blocks
