"""Predicted costs against the divergence of models that really have those errors."""

from __future__ import annotations

import statistics
from pathlib import Path

import pytest
import torch

from llmopt.allocate.sensitivity import Sensitivity, cost
from llmopt.blockwalk.gradient import InletSensitivity, walk_backward
from llmopt.blockwalk.weights import LiveWeights
from llmopt.evaluate.held_out import HeldOut
from llmopt.formats.checkpoint import Checkpoint
from llmopt.linalg import InputStatistics
from llmopt.model.change import Change
from llmopt.model.layout import Layout
from llmopt.specs import FORMATS
from tests import models

FINE = Layout(grid="int8", group_size=-1, symmetric=True)
COARSE = Layout(grid="int2", group_size=32, symmetric=True)


def rounded(weight: torch.Tensor, _: InputStatistics, setting: Layout) -> torch.Tensor:
    step = 4 * weight.std(dim=1, keepdim=True) / 2**setting.bits
    return (weight / step).round() * step


def test_random_errors_cost_what_is_predicted(tmp_path: Path) -> None:
    models.save(tmp_path / "model", "llama")
    checkpoint, rows = Checkpoint.open(tmp_path / "model"), models.tokens(24, 32)
    errors: dict[str, torch.Tensor] = {}
    predicted: dict[str, float] = {}
    generator = torch.Generator().manual_seed(0)

    def visit(_: int, seen: list[InletSensitivity], weights: LiveWeights) -> None:
        for each in seen:
            for name in each.names:
                weight = weights.read(f"{name}.weight")
                noise = torch.randn(weight.shape, generator=generator)
                errors[name] = weight + 0.01 * weight.std() * noise
                predicted[name] = cost(errors[name] - weight, each, name)

    walk_backward(checkpoint, rows, visit, tmp_path / "state", batch_size=8)
    held_out = HeldOut(checkpoint, rows)

    def measured(*names: str) -> float:
        found = held_out.measure(lambda name: errors[name] if name in names else None)
        return statistics.fmean(found)

    ratios = [measured(name) / predicted[name] for name in list(errors)[::3]]
    assert 0.8 < statistics.geometric_mean(ratios) < 1.25
    assert max(ratios) < 2.5
    assert min(ratios) > 0.4
    together = measured(*errors) / sum(predicted.values())
    assert 0.7 < together < 1.4


@pytest.mark.parametrize("family", ["llama", "gpt2", "mixtral"])
def test_groups_hold_every_linear_once(tmp_path: Path, family: str) -> None:
    models.save(tmp_path / "model", family)
    checkpoint = Checkpoint.open(tmp_path / "model")
    changes = [
        change(checkpoint, name) for b in (0, 1) for n in checkpoint.naming.linears(b) for name in n
    ]
    sensitivity = Sensitivity(
        checkpoint.naming, changes, FORMATS["gptq"], rounded, tmp_path / "parts"
    )  # fmt: skip
    walk_backward(checkpoint, models.tokens(4, 16), sensitivity, tmp_path / "state")
    groups = sensitivity.groups()
    names = [name for group in groups for name in group.names]
    assert sorted(names) == sorted(change.name.removesuffix(".weight") for change in changes)
    inlets = [set(inlet) for block in (0, 1) for inlet in checkpoint.naming.linears(block)]
    assert all(any(inlet <= set(g.names) for g in groups) for inlet in inlets)
    if family == "mixtral":  # one kernel computes all experts of a block
        assert len(groups) == 2 * 4
    for group in groups:
        assert [option.setting for option in group.options] == [COARSE, FINE]
        assert 0 < group.options[1].cost < 0.1 * group.options[0].cost
        value = sensitivity.value(group.names[0], FINE)
        weight = _weight(checkpoint, group.names[0])
        torch.testing.assert_close(value.float(), rounded(weight, None, FINE), rtol=1e-3, atol=1e-4)


def change(checkpoint: Checkpoint, name: str) -> Change:
    shape = tuple(_weight(checkpoint, name).shape)
    return Change(
        name=f"{name}.weight", actions=("quantized",), shape=shape, bytes=0, layout=FINE,
        options=(COARSE, FINE),
    )  # fmt: skip


def _weight(checkpoint: Checkpoint, name: str) -> torch.Tensor:
    from llmopt.blockwalk.sink import PartResults

    weights = LiveWeights(checkpoint, PartResults())
    return weights.oriented(name, weights.read(f"{name}.weight")).float()
