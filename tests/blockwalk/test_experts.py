"""Experts in the walk: their own statistics, and the pool of those that too few tokens reach."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from llmopt.blockwalk.experts import Pools
from llmopt.errors import LlmoptError
from llmopt.formats.checkpoint import Checkpoint
from llmopt.linalg import InputMoments, InputStatistics
from llmopt.specs.families import FAMILIES, naming_of
from tests import models
from tests.blockwalk.conftest import Round, Watch, run
from tests.blockwalk.test_walk import close, hessian

FAMILY_IDS = [name for name in models.FAMILY_SETTINGS if FAMILIES[name].experts]
GATE, DOWN = 64, 32  # input channels of the tiny qwen models' linears


def expert_inputs(folder: Path, family: str, tokens: torch.Tensor) -> dict[str, torch.Tensor]:
    """What flows into every expert's linears of the first block that has them, by name."""
    model = models.with_plain_experts(models.save(folder, family))
    naming = Checkpoint.open(folder).naming
    block = next(index for index, count in enumerate(naming.experts) if count)
    inputs: dict[str, torch.Tensor] = {}
    for name in (name for names in naming.linears(block) for name in names):
        if naming.pool_of(name) is not None:

            def note(_: object, given: tuple[torch.Tensor], name: str = name) -> None:
                inputs[name] = given[0]

            model.get_submodule(naming.module(name)).register_forward_pre_hook(note)
    with torch.no_grad():
        model(tokens)
    return inputs


@pytest.mark.parametrize("sequential", [False, True])
@pytest.mark.parametrize("family", FAMILY_IDS)
def test_an_expert_sees_its_tokens_or_where_they_are_few_the_pool(
    tmp_path: Path, family: str, sequential: bool
) -> None:
    tokens = models.tokens(6, 20)
    inputs = expert_inputs(tmp_path / "model", family, tokens)
    naming = Checkpoint.open(tmp_path / "model").naming
    watch = Watch(sequential=sequential)
    run(tmp_path / "model", tmp_path, watch, tokens=tokens, batch_size=3)
    cold = 0
    for name, x in inputs.items():
        seen = next(s for names, s in watch.seen.items() if name in names)
        if len(x) < x.shape[1]:
            cold += 1
            pool = [y for n, y in inputs.items() if naming.pool_of(n) == naming.pool_of(name)]
            x = torch.cat(pool)
        assert seen.tokens == len(x)
        assert close(seen.hessian, hessian(x)), name
        assert close(seen.mean_abs, x.abs().mean(dim=0))
    assert 0 < cold < len(inputs)


@pytest.mark.parametrize("family", FAMILY_IDS)
def test_cold_experts_are_noted_with_their_own_count(tmp_path: Path, family: str) -> None:
    tokens = models.tokens(6, 20)
    inputs = expert_inputs(tmp_path / "model", family, tokens)
    counts = Checkpoint.open(tmp_path / "model").naming.experts
    dense = [f"layers.{index}." for index, count in enumerate(counts) if not count]
    records = run(tmp_path / "model", tmp_path, Round(skip=dense), tokens=tokens)
    few = {name: len(x) for name, x in inputs.items() if len(x) < x.shape[1]}
    noted = {name: record["tokens"] for name, record in records.items() if "cold" in record}
    assert few
    assert {name: count for name, count in noted.items() if name in inputs} == few


def test_written_experts_have_tensors_of_their_own(tmp_path: Path) -> None:
    models.save(tmp_path / "model", "mixtral")
    run(tmp_path / "model", tmp_path, Round(), tokens=models.tokens(6, 20))
    before = load_file(tmp_path / "model" / "model.safetensors")
    after = load_file(tmp_path / "out" / "model.safetensors")
    assert "model.layers.1.block_sparse_moe.experts.3.w2.qweight" in after
    router = "model.layers.0.block_sparse_moe.gate.weight"
    assert torch.equal(after[router], before[router])


def pools(sizes: list[int]) -> tuple[Pools, list[Any], list[torch.Tensor]]:
    """A block whose experts' gates saw these many tokens."""
    names = [
        f"model.layers.0.mlp.experts.{i}.{linear}_proj.weight"
        for i in range(len(sizes))
        for linear in ("gate", "up", "down")
    ]
    naming = naming_of(FAMILIES["qwen3_moe"], names)
    inputs = [torch.randn(size, GATE) for size in sizes]
    seen: list[Any] = []
    for inlet, x in zip(naming.rounds(0)[-2], inputs, strict=True):
        statistics = InputStatistics.empty(GATE, InputMoments(hessian=True, mean_abs=True))
        statistics.add(x)
        seen.append((inlet, statistics if len(x) else None))
    return Pools(naming, 0), seen, inputs


def test_the_cold_wait_for_the_last_of_their_block() -> None:
    group, seen, inputs = pools([100, 3, 0, 200])
    first = list(group.sort(seen[:3], lambda _: GATE))
    second = list(group.sort(seen[3:], lambda _: GATE))
    assert [(len(c.names), c.cold) for c in first] == [(2, None)]
    assert [c.cold and c.cold.tokens for c in second] == [None, 3, 0]
    assert all(c.statistics.tokens == 303 for c in second[1:])
    assert close(second[1].statistics.hessian, hessian(torch.cat(inputs)))


def test_a_block_that_nothing_reaches_is_an_error() -> None:
    group, seen, _ = pools([0, 0])
    with pytest.raises(LlmoptError, match=r"no activations reached .*experts\.0\.gate_proj"):
        list(group.sort(seen, lambda _: GATE))


def test_experts_are_collected_in_as_many_passes_as_memory_asks_for() -> None:
    naming = naming_of(
        FAMILIES["qwen3_moe"],
        [f"model.layers.0.mlp.experts.{i}.gate_proj.weight" for i in range(5)],
    )
    wide = {"down": DOWN}

    def needed(name: str) -> int:
        return 4 * next((size for part, size in wide.items() if part in name), GATE) ** 2

    budget = 2 * 4 * GATE**2
    found = [len(some) for some in naming.rounds_within(0, needed, budget)]
    assert found == [1, 1, 2, 2, 1, 5]
