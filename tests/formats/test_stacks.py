"""Experts in one parameter: where each linear is, and how files get the parameter back."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from llmopt.formats.checkpoint import Checkpoint
from llmopt.formats.shards import ShardWriter
from llmopt.formats.stacks import StackPlace, assembled, by_parameter, whole
from llmopt.specs.families import StackSpec
from tests.families import works


def place(expert: int, part: int, **form: bool) -> StackPlace:
    stack = StackSpec(path="w", linears=("*.gate", "*.up"), **form)
    return StackPlace(
        parameter="w", linear=f"{expert}.{part}", stack=stack, expert=expert, part=part
    )


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("interleaved", [False, True])
def test_a_linear_is_a_view_of_its_rows(transposed: bool, interleaved: bool) -> None:
    linears = torch.arange(48.0).reshape(2, 2, 3, 4)  # experts, parts, out, in
    matrices = linears.transpose(1, 2) if interleaved else linears
    parameter = matrices.reshape(2, 6, 4)
    parameter = parameter.mT.contiguous() if transposed else parameter
    form = {"transposed": transposed, "interleaved": interleaved}
    places = [place(expert, part, **form) for expert in range(2) for part in range(2)]
    for each in places:
        assert torch.equal(each.of(parameter), linears[each.expert, each.part])
    by_name = {p.linear: linears[p.expert, p.part] for p in places}
    made = assembled(
        parameter, places, by_name.__getitem__, dtype=torch.float32, device=torch.device("cpu")
    )
    assert torch.equal(made, parameter)


@pytest.mark.parametrize("model_type", ["gpt_oss", "granitemoe", "llama4_text"])
def test_files_hold_the_parameter_as_the_source_does(model_type: str, tmp_path: Path) -> None:
    works.save(model_type, tmp_path / "model")
    checkpoint = Checkpoint.open(tmp_path / "model")
    stacks = whole(checkpoint.naming)
    parts = {part for parts in stacks.values() for part in parts}
    assert parts < set(checkpoint.stored)
    writer = ShardWriter(tmp_path / "parts")
    first = next(iter(parts))
    writer.write("a", {first: checkpoint.read(first) + 1})
    for name, tensor in checkpoint.stored.items():
        if name != first:
            writer.keep(name, tensor.header)
    (tmp_path / "out").mkdir()
    writer.finalize(tmp_path / "out", stacks=stacks)
    before, after = (load_file(tmp_path / f / "model.safetensors") for f in ("model", "out"))
    assert before.keys() == after.keys()
    changed = [name for name in before if not torch.equal(before[name], after[name])]
    assert changed == [stack for stack, inside in stacks.items() if first in inside]
    differs = (before[changed[0]] != after[changed[0]]).flatten(1).any(1)
    assert differs.sum() == 1


def test_each_linear_of_a_block_has_one_place(tmp_path: Path) -> None:
    works.save("gpt_oss", tmp_path / "model")
    naming = Checkpoint.open(tmp_path / "model").naming
    linears = [p.linear for within in by_parameter(naming).values() for p in within]
    assert len(linears) == len(set(linears)) == 2 * 6 * naming.block_count
    assert naming.transposed(linears[0])
    assert not naming.transposed("model.layers.0.self_attn.q_proj")
    assert naming.pool_of(linears[0]) == "model.layers.0.mlp.experts.*.gate_up_proj"
