"""The pass that rounds a block's linears, as the block walk runs it."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping

import torch

from llmopt.blockwalk import Inlet, LiveBlock
from llmopt.errors import about
from llmopt.formats.codec import decode
from llmopt.grids.base import AffineParams, GridOptions, QuantizedTensor
from llmopt.methods.quantize.base import check_scales
from llmopt.model.change import Change
from llmopt.model.layout import Layout
from llmopt.verbs.shared.records import compared
from llmopt.verbs.shared.solving import Solver


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
        weights = [inlet.weight(name) for name in names]
        with about(", ".join(names)):
            solved = self._solver.solve(torch.cat(weights), inlet.statistics, chosen)
        assert isinstance(solved, QuantizedTensor)
        start = 0
        for name, weight in zip(names, weights, strict=True):
            part = rows_of(solved, start, start + weight.shape[0], chosen.activations)
            start += weight.shape[0]
            with about(name):
                check_scales(weight, part)
                record = compared(decode(part), weight, inlet.statistics)
            desc_act = {"desc_act": part.params.group_index is not None}
            inlet.replace(name, part, record | desc_act)


def rows_of(
    tensor: QuantizedTensor, start: int, stop: int, activations: str | None
) -> QuantizedTensor:
    """Output channels start to stop of a tensor that was solved together with others."""
    p = tensor.params
    params = AffineParams(
        bits=p.bits, group_size=p.group_size, symmetric=p.symmetric,
        scale=p.scale[start:stop].clone(), zero=p.zero[start:stop].clone(),
        group_index=p.group_index, scale_dtype=p.scale_dtype,
    )  # fmt: skip
    codes = tensor.codes[start:stop].clone()
    return QuantizedTensor(grid=tensor.grid, codes=codes, params=params, activations=activations)
