"""The pass that rounds a block's linears, as the block walk runs it."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import replace

from torch import Tensor

from llmopt.blockwalk import Inlet, LiveBlock, Record
from llmopt.errors import about
from llmopt.formats.codec import decode
from llmopt.grids.base import GridOptions, QuantizedTensor, joined, rows_of
from llmopt.linalg import InputStatistics
from llmopt.methods.quantize.base import ScaleCheck, check_weight
from llmopt.model.change import Change
from llmopt.model.layout import Layout
from llmopt.verbs.shared.records import RoundingErrors
from llmopt.verbs.shared.solving import Solver, solved_rows


class Quantize:
    """One solve for all linears that share their input and their settings.

    `changes` are those of tensors by module name. `sequential`: each input's statistics see what
    was quantized before it in the same block.
    """

    changes = True

    def __init__(self, solver: Solver, changes: Mapping[str, Change], *, sequential: bool) -> None:
        self._solver, self._changes, self._sequential = solver, changes, sequential

    def apply(self, block: LiveBlock) -> None:
        """Quantize what the plan says of the block's linears."""
        for inlet in block.inlets(self._solver.wanted, sequential=self._sequential):
            self._quantize(inlet)

    def options_of(self, name: str) -> GridOptions | None:
        """The grid that a linear gets, None where it is kept."""
        chosen = self._changes[name].quantized if name in self._changes else None
        return None if chosen is None else self._solver.options(chosen)

    def _quantize(self, inlet: Inlet) -> None:
        together: dict[Layout, list[str]] = defaultdict(list)
        for name in inlet.names:
            chosen = self._changes[name].quantized if name in self._changes else None
            if chosen is not None:
                together[chosen].append(name)
        for chosen, names in together.items():
            self._solve(inlet, names, chosen)

    def _solve(self, inlet: Inlet, names: list[str], chosen: Layout) -> None:
        def solve(weight: Tensor) -> QuantizedTensor:
            solved = self._solver.solve(weight, inlet.statistics, chosen)
            assert isinstance(solved, QuantizedTensor)
            return replace(solved, activations=chosen.activations)

        made = {name: _Made(inlet.statistics) for name in names}
        for name, weight, solved, rows in solved_rows(inlet, names, check_weight, solve):
            with about(name):
                made[name].add(rows_of(solved, rows), weight)
        for name in names:
            with about(name):
                tensor, record = made.pop(name).settle()
            inlet.replace(name, tensor, record)


class _Made:
    """What was made of a linear, some rows at a time."""

    def __init__(self, statistics: InputStatistics | None) -> None:
        self._parts: list[QuantizedTensor] = []
        self._scales, self._compared = ScaleCheck(), RoundingErrors(statistics)

    def add(self, part: QuantizedTensor, weight: Tensor) -> None:
        """The next rows, and what they were."""
        self._scales.add(weight, part)
        self._compared.add(decode(part), weight, part.losses)
        self._parts.append(part)

    def settle(self) -> tuple[QuantizedTensor, Record]:
        """All of it; RequestError where too little is left of the weight."""
        self._scales.settle()
        tensor = joined(self._parts)
        desc_act = tensor.params.group_index is not None
        return tensor, self._compared.record() | {"desc_act": desc_act}
