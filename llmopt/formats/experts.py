"""Experts as modules of plain linears, in place of the fused parameters that transformers builds.

With a linear for each weight, what flows into it can be watched and it can be replaced, like any
other of the model, and its name is the one that checkpoints use.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from llmopt.specs.families import ExpertsSpec, FamilySpec


class Expert(nn.Module):
    """down(act(gate(x)) * up(x)) for x [tokens, width], the linears named as checkpoints do."""

    def __init__(
        self, spec: ExpertsSpec, width: int, inner: int, act: nn.Module, dtype: torch.dtype
    ) -> None:
        super().__init__()
        self._names = (spec.gate, spec.up, spec.down)
        self._act = act
        for name, cols, rows in zip(
            self._names, (width, width, inner), (inner, inner, width), strict=True
        ):
            self.add_module(name, nn.Linear(cols, rows, bias=False, device="meta", dtype=dtype))

    def forward(self, x: Tensor) -> Tensor:
        gate, up, down = (self.get_submodule(name) for name in self._names)
        y: Tensor = down(self._act(gate(x)) * up(x))
        return y


class Experts(nn.Module):
    """Each token's sum of its experts' outputs; children are named 0, 1, ..."""

    def __init__(self, fused: nn.Module, spec: ExpertsSpec) -> None:
        super().__init__()
        gate_up: Tensor = getattr(fused, spec.fused_gate_up)
        count, rows, width = gate_up.shape
        act = fused.get_submodule("act_fn")
        for index in range(count):
            expert = Expert(spec, width, rows // 2, act, gate_up.dtype)
            self.add_module(str(index), expert)

    def forward(self, hidden: Tensor, chosen: Tensor, shares: Tensor) -> Tensor:
        """hidden [tokens, width]; the experts chosen for each token, [tokens, k], and shares."""
        result = torch.zeros_like(hidden)
        for index, expert in enumerate(self.children()):
            tokens, place = torch.where(chosen == index)
            if len(tokens):
                output = expert(hidden[tokens]) * shares[tokens, place, None]
                result.index_add_(0, tokens, output.to(result.dtype))
        return result


def unfuse(model: nn.Module, family: FamilySpec) -> None:
    """Replace the experts of every block of a model whose parameters are on the meta device."""
    spec = family.experts
    if spec is None:
        return
    for block in model.get_submodule(f"{family.base}.{family.blocks}").children():
        owner = dict(block.named_modules()).get(spec.owner)
        if owner is not None and hasattr(owner, spec.path):
            setattr(owner, spec.path, Experts(owner.get_submodule(spec.path), spec))
