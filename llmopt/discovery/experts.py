"""Whether the experts of a model are of the usual form, by what they compute."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from llmopt.discovery.names import Stack
from llmopt.discovery.running import logits_of
from llmopt.formats.experts import Experts
from llmopt.specs.family import ExpertsSpec


def usual_form(
    model: Any, blocks: Sequence[nn.Module], inside: str, stacks: Sequence[Stack], tokens: Tensor
) -> ExpertsSpec | None:
    """How to call them, if modules of plain linears give what the model's own experts give.

    inside: the path of the blocks. stacks: all of the model; they must be an expert's gate above
    its up, and its down, which checkpoints store apart.
    """
    spec = _spec(stacks, inside)
    if spec is None:
        return None
    owner = f"{spec.owner}.{spec.path}"
    fused = [part for block in blocks for path, part in block.named_modules() if path == owner]
    seen: list[tuple[nn.Module, tuple[Any, ...], object]] = []
    logits_of(model, tokens, {part: lambda *call: seen.append(call) for part in fused})
    same = all(_same(part, spec, given, output) for part, given, output in seen)
    return spec if seen and same else None


def _spec(stacks: Sequence[Stack], inside: str) -> ExpertsSpec | None:
    paths = {stack.path.removeprefix(f"{inside}.").partition(".")[2]: stack for stack in stacks}
    if len(paths) != 2 or any(s.transposed or s.interleaved for s in stacks):
        return None
    by_parts = {len(s.parts): path for path, s in paths.items()}
    if by_parts.keys() != {1, 2}:
        return None
    gate_up, down = by_parts[2], by_parts[1]
    holder, _, gate_up_leaf = gate_up.rpartition(".")
    if down.rpartition(".")[0] != holder or "." not in holder:
        return None
    owner, _, path = holder.rpartition(".")
    gate, up = paths[gate_up].parts
    return ExpertsSpec(
        owner=owner, path=path, gate=gate, up=up, down=paths[down].parts[0],
        fused_gate_up=gate_up_leaf, fused_down=down.rpartition(".")[2],
    )  # fmt: skip


def _same(part: nn.Module, spec: ExpertsSpec, given: tuple[Any, ...], output: object) -> bool:
    """Whether plain linears with a module's weights give its output."""
    if not isinstance(output, Tensor) or not hasattr(part, "act_fn") or len(given) != 3:
        return False
    gate_up, down = getattr(part, spec.fused_gate_up), getattr(part, spec.fused_down)
    if len(list(part.parameters())) != 2 or len(list(part.children())) != 1:
        return False
    plain = Experts(part, spec)
    for index, expert in enumerate(plain.children()):
        gate, up = gate_up[index].chunk(2)
        values = {spec.gate: gate, spec.up: up, spec.down: down[index]}
        for name, weight in values.items():
            expert.get_submodule(name).weight = nn.Parameter(weight.detach())
    with torch.no_grad():
        try:
            found = plain(*given)
        except (RuntimeError, TypeError, IndexError):
            return False
    return torch.allclose(found, output, rtol=1e-4, atol=1e-5)
