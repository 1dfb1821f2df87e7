"""What a pass can do with a live block: mask, tune, reshape, and ask in any order."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch.nn import functional as F

from llmopt.blockwalk import LiveBlock, Pass
from llmopt.blockwalk.skeleton import Skeleton
from llmopt.errors import LlmoptError
from llmopt.formats.checkpoint import Checkpoint
from llmopt.grids.base import QuantizedTensor
from llmopt.linalg import InputMoments
from tests import models
from tests.blockwalk.conftest import Round, Watch, calibration, rounded, run
from tests.blockwalk.test_walk import weights_as_run


class Mask:
    """Sets the half of every weight to zero that moves outputs least, by weight times input."""

    changes = True

    def apply(self, block: LiveBlock) -> None:
        for inlet in block.inlets(InputMoments(), sequential=True):
            assert inlet.statistics is not None
            for name in inlet.names:
                weight = inlet.weight(name)
                score = weight.abs() * inlet.statistics.diagonal.sqrt()
                smallest = score.argsort(dim=1)[:, : weight.shape[1] // 2]
                inlet.replace(name, weight.scatter(1, smallest, 0.0), {"masked": 0.5})


class RoundWithinMasks:
    """Rounds, and lets what was zero in the source be zero."""

    changes = True

    def apply(self, block: LiveBlock) -> None:
        for name in (name for names in block.linears for name in names):
            found = rounded(block.weight(name))
            codes = torch.where(block.mask(name), 8, found.codes)
            kept = QuantizedTensor(grid=found.grid, codes=codes.byte(), params=found.params)
            block.replace(name, kept, {"kept": int(block.mask(name).sum())})


class Tune:
    """Moves one linear of each block by gradient, towards the original block's outputs."""

    changes = True

    def __init__(self) -> None:
        self.losses: list[tuple[float, float]] = []

    def apply(self, block: LiveBlock) -> None:
        if block.is_head:
            return
        name = block.linears[-1][-1]
        weight = block.weight(name)
        moving = weight.clone().requires_grad_()
        first = self.loss(block, name, weight)
        optimizer = torch.optim.Adam([moving], lr=3e-3)
        for _ in range(8):
            for hidden, target in zip(block.inputs(), block.targets(), strict=True):
                with torch.enable_grad():
                    loss = F.mse_loss(block.forward(hidden, {name: moving}), target)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
        block.replace(name, moving.detach())
        self.losses.append((first, self.loss(block, name, block.weight(name))))

    def loss(self, block: LiveBlock, name: str, weight: torch.Tensor) -> float:
        pairs = zip(block.inputs(), block.targets(), strict=True)
        return sum(float(F.mse_loss(block.forward(x, {name: weight}), y)) for x, y in pairs)


class Narrow:
    """Leaves out the second half of a llama's hidden channels."""

    changes = True

    def apply(self, block: LiveBlock) -> None:
        for name in (name for names in block.linears for name in names):
            weight = block.weight(name)
            if name.endswith(("gate_proj", "up_proj")):
                block.replace(name, weight[: len(weight) // 2])
            elif name.endswith("down_proj"):
                block.replace(name, weight[:, : weight.shape[1] // 2])


class Die:
    """Kills the walk when it comes to a block."""

    changes = True

    def __init__(self, block: int) -> None:
        self.block = block

    def apply(self, block: LiveBlock) -> None:
        if block.index == self.block:
            raise KeyboardInterrupt


def test_masks_of_the_source_survive_a_later_pass(tmp_path: Path) -> None:
    models.save(tmp_path / "model", "gpt2")
    run(tmp_path / "model", tmp_path, Mask(), tokens=calibration())
    source = (tmp_path / "out").rename(tmp_path / "masked")
    (tmp_path / "model" / "config.json").rename(source / "config.json")
    work = tmp_path / "rounded"
    records = run(source, work, RoundWithinMasks(), tokens=None)
    source.rename(work / "model")  # where what reads the result looks for it
    before, after = Checkpoint.open(work / "model"), weights_as_run(work / "out")
    assert records.keys() == after.keys()
    for name, weight in after.items():
        zero = before.weight(name) == 0
        assert records[name]["kept"] == int(zero.sum()) >= zero.numel() // 2
        assert not bool(weight.T[zero].any())
        assert bool(weight.T[~zero].any())


@pytest.mark.parametrize("family", ["llama", "gpt2", "gpt_neox"])
def test_a_tuned_block_comes_closer_to_what_the_original_gives(tmp_path: Path, family: str) -> None:
    """After the others of the block were rounded; what it is held to is computed only then."""
    models.save(tmp_path / "model", family)
    last = {"llama": "down_proj", "gpt2": "mlp.c_proj", "gpt_neox": "dense_4h_to_h"}[family]
    tune = Tune()
    run(tmp_path / "model", tmp_path, Round(skip=[last]), tune, tokens=calibration())
    assert len(tune.losses) == 2
    assert all(after < 0.9 * before for before, after in tune.losses)


@pytest.mark.parametrize(
    "passes", [(Mask(), Round(sequential=True)), (Round(skip=["down"]), Tune())]
)
def test_a_killed_list_of_passes_goes_on_with_the_same_bytes(
    tmp_path: Path, passes: tuple[Pass, ...]
) -> None:
    models.save(tmp_path / "model", num_hidden_layers=3)
    run(tmp_path / "model", tmp_path / "whole", *passes, tokens=calibration(), head=True)
    for block in (1, 2):
        with pytest.raises(KeyboardInterrupt):
            run(tmp_path / "model", tmp_path / "killed", *passes, Die(block), tokens=calibration())
    run(tmp_path / "model", tmp_path / "killed", *passes, tokens=calibration(), head=True)
    whole, killed = (tmp_path / w / "out" / "model.safetensors" for w in ("whole", "killed"))
    assert whole.read_bytes() == killed.read_bytes()


def test_a_linear_may_change_its_shape(tmp_path: Path) -> None:
    """The block is computed with it, its statistics have its width, a later pass rounds it."""
    models.save(tmp_path / "model", "llama", intermediate_size=128)
    watch = Watch()
    run(tmp_path / "model", tmp_path, Narrow(), watch, tokens=calibration())
    stored = load_file(tmp_path / "out" / "model.safetensors")
    for name, shape in {"gate_proj": (64, 64), "up_proj": (64, 64), "down_proj": (64, 64)}.items():
        assert tuple(stored[f"model.layers.1.mlp.{name}.weight"].shape) == shape
    down = next(seen for names, seen in watch.seen.items() if "down_proj" in names[0])
    assert down is not None
    assert down.hessian.shape == (64, 64)


def counting(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How often blocks are computed, or begun."""
    calls = [0]
    call = Skeleton.call

    def counted(self: Skeleton, *arguments: object) -> torch.Tensor:
        calls[0] += 1
        return call(self, *arguments)

    monkeypatch.setattr(Skeleton, "call", counted)
    return calls


def test_nothing_is_computed_that_no_pass_asks_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Three batches, two blocks: they pass through the first once, and not through the last."""
    models.save(tmp_path / "model")
    calls = counting(monkeypatch)
    run(tmp_path / "model", tmp_path, Narrow(), tokens=calibration())
    assert calls == [3]


class Ask:
    """Changes nothing, and asks for what flows in after it has seen statistics."""

    changes = False

    def apply(self, block: LiveBlock) -> None:
        list(block.inlets(InputMoments()))
        next(iter(block.inputs()))


def test_what_has_moved_on_cannot_be_seen_again(tmp_path: Path) -> None:
    models.save(tmp_path / "model")
    with pytest.raises(LlmoptError, match="asks once what flows into a block"):
        run(tmp_path / "model", tmp_path, Ask(), tokens=calibration())
    run(tmp_path / "model", tmp_path / "before", Ask(), Round(), tokens=calibration())
    with pytest.raises(LlmoptError, match=r"nothing flows through .*q_proj in this walk"):
        run(tmp_path / "model", tmp_path / "without", Ask(), tokens=None)
