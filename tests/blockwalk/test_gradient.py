"""The backward walk against autograd through the whole model, for every family."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from llmopt.blockwalk.gradient import InletSensitivity, walk_backward
from llmopt.formats.checkpoint import Checkpoint
from llmopt.specs.families import FAMILIES
from tests import models

#: experts are computed together in transformers, where no hook sees one
TESTED = [f for f in models.FAMILY_SETTINGS if FAMILIES[f].experts is None]


class Collect:
    """Keeps what the walk shows; dies once, before block `until`."""

    def __init__(self, until: int = -1) -> None:
        self.found: dict[str, tuple[torch.Tensor, torch.Tensor]] = {}
        self.order: list[int] = []
        self.until = until

    def __call__(self, block: int, seen: list[InletSensitivity], _: object) -> None:
        if block == self.until:
            self.until = -1
            raise KeyboardInterrupt
        self.order.append(block)
        for each in seen:
            for name in each.names:
                self.found[name] = (each.fisher[name], each.statistics.hessian)


def by_autograd(
    model: torch.nn.Module, rows: torch.Tensor, checkpoint: Checkpoint, seed: int
) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    """E[g^2] of each linear's outputs and E[x x^T] of its inputs; same labels, in float64."""
    model = model.double()
    modules = dict(model.named_modules())
    inputs: dict[str, torch.Tensor] = {}
    outputs: dict[str, torch.Tensor] = {}

    def keep(name: str):
        def hook(_: object, arguments: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
            inputs[name], outputs[name] = arguments[0].detach(), output
            output.retain_grad()

        return hook

    for block in range(checkpoint.naming.block_count):
        for names in checkpoint.naming.linears(block):
            for name in names:
                modules[name].register_forward_hook(keep(name))
    for parameter in model.parameters():
        parameter.requires_grad_(True)
    logits = model(input_ids=rows, use_cache=False).logits
    generator = torch.Generator().manual_seed(seed)
    probabilities = logits.detach().float().softmax(-1)
    labels = torch.cat([torch.multinomial(c, 1, generator=generator)[:, 0] for c in probabilities])
    torch.nn.functional.cross_entropy(logits.flatten(0, 1), labels, reduction="sum").backward()

    def mean_products(values: torch.Tensor) -> torch.Tensor:
        flat = values.reshape(-1, values.shape[-1])
        return flat.T @ flat / rows.numel()

    return {
        name: (mean_products(outputs[name].grad).diagonal(), mean_products(inputs[name]))
        for name in inputs
    }


@pytest.mark.parametrize("family", TESTED)
def test_matches_autograd_through_the_whole_model(tmp_path: Path, family: str) -> None:
    model = models.save(tmp_path / "model", family)
    checkpoint = Checkpoint.open(tmp_path / "model")
    rows, collect = models.tokens(5, 12), Collect()
    walk_backward(checkpoint, rows, collect, tmp_path / "state", batch_size=2, seed=3)
    expected = by_autograd(model, rows, checkpoint, seed=3)
    assert collect.order == [1, 0]
    assert collect.found.keys() == expected.keys()
    for name, (fisher, hessian) in expected.items():
        torch.testing.assert_close(collect.found[name][0].double(), fisher, rtol=2e-3, atol=1e-7)
        scale = float(hessian.diagonal().mean())
        assert float((collect.found[name][1] - hessian).abs().max()) < 0.02 * scale


def test_every_expert_is_seen(tmp_path: Path) -> None:
    models.save(tmp_path / "model", "mixtral")
    checkpoint, collect = Checkpoint.open(tmp_path / "model"), Collect()
    walk_backward(checkpoint, models.tokens(5, 12), collect, tmp_path / "state", batch_size=2)
    linears = {n for b in range(2) for names in checkpoint.naming.linears(b) for n in names}
    assert collect.found.keys() == linears
    assert all(bool(fisher.isfinite().all()) for fisher, _ in collect.found.values())
    assert sum(float(fisher.sum()) > 0 for fisher, _ in collect.found.values()) > 0.9 * len(linears)


def test_a_killed_walk_goes_on_with_the_same_bytes(tmp_path: Path) -> None:
    models.save(tmp_path / "model", num_hidden_layers=3)
    checkpoint, rows = Checkpoint.open(tmp_path / "model"), models.tokens(3, 12)
    whole, killed = Collect(), Collect(until=1)
    walk_backward(checkpoint, rows, whole, tmp_path / "whole", batch_size=2)
    with pytest.raises(KeyboardInterrupt):
        walk_backward(checkpoint, rows, killed, tmp_path / "killed", batch_size=2)
    walk_backward(checkpoint, rows, killed, tmp_path / "killed", batch_size=2)
    assert killed.order == [2, 1, 0]  # block 2 was not computed again
    for name, values in whole.found.items():
        for ours, theirs in zip(values, killed.found[name], strict=True):
            assert torch.equal(ours, theirs), name
