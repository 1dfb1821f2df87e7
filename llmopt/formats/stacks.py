"""Parameters that hold a matrix for each expert, and the linears that they are made of."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from llmopt.specs.families import Naming, StackSpec


def rows_of(matrix: Tensor, part: int, parts: int, *, interleaved: bool) -> Tensor:
    """One of equal parts of a matrix's rows, a view; `interleaved`: every so many-th row."""
    if interleaved:
        return matrix[part::parts]
    rows = matrix.shape[0] // parts
    return matrix[part * rows : (part + 1) * rows]


@dataclass(frozen=True, kw_only=True)
class StackPlace:
    """Where an expert's linear is in a parameter of the text model.

    parameter: its path in the model. linear: the linear's name in our files.
    """

    parameter: str
    linear: str
    stack: StackSpec
    expert: int
    part: int

    def of(self, parameter: Tensor) -> Tensor:
        """The linear's weight [out, in], a view."""
        matrix = parameter[self.expert]
        matrix = matrix.mT if self.stack.transposed else matrix
        parts = len(self.stack.linears)
        return rows_of(matrix, self.part, parts, interleaved=self.stack.interleaved)


def places(naming: Naming, block: int, experts: int | None = None) -> Iterator[StackPlace]:
    """All of one block: of as many experts, or of those that the checkpoint has."""
    inside = f"{naming.family.base}.{naming.family.blocks}.{block}"
    if experts is None:
        experts = naming.experts[block] if naming.experts else 0
    for stack in naming.family.stacks:
        for expert in range(experts):
            for part, path in enumerate(stack.linears):
                module = f"{inside}.{path}".replace("*", str(expert))
                yield StackPlace(
                    parameter=f"{inside}.{stack.path}",
                    linear=naming.name(module),
                    stack=stack,
                    expert=expert,
                    part=part,
                )


class Places:
    """Those of one model, by a linear's name."""

    def __init__(self, naming: Naming) -> None:
        self._naming = naming
        self._blocks: dict[int, dict[str, StackPlace]] = {}

    def of_block(self, block: int | None) -> dict[str, StackPlace]:
        """The linears of a block that are parts of a parameter; none outside of blocks."""
        if block is None or not self._naming.family.stacks:
            return {}
        if block not in self._blocks:
            self._blocks[block] = {each.linear: each for each in places(self._naming, block)}
        return self._blocks[block]

    def find(self, linear: str) -> StackPlace | None:
        """Where a linear is in a parameter; None where it is a module of its own."""
        return self.of_block(self._naming.block_of(f"{linear}.")).get(linear)


def by_parameter(naming: Naming) -> dict[str, list[StackPlace]]:
    """All of a model, by the path of the parameter that they are in."""
    found: dict[str, list[StackPlace]] = {}
    for block in range(naming.block_count):
        for place in places(naming, block):
            found.setdefault(place.parameter, []).append(place)
    return found


def assembled(
    parameter: Tensor,
    within: list[StackPlace],
    read: Callable[[str], Tensor],
    *,
    dtype: torch.dtype,
    device: torch.device,
) -> Tensor:
    """A parameter of this shape; `read` gives a linear's weight [out, in] by its name."""
    assert len(within) == parameter.shape[0] * len(within[0].stack.linears)
    value = torch.empty(parameter.shape, dtype=dtype, device=device)
    for place in within:
        place.of(value).copy_(read(place.linear))
    return value


def whole(naming: Naming) -> dict[str, list[str]]:
    """Parameters that checkpoints hold as they are, and the tensors of their experts, by name."""
    return {
        naming.name(parameter): [f"{place.linear}.weight" for place in within]
        for parameter, within in by_parameter(naming).items()
        if within[0].stack.whole
    }
