"""The pass that encodes a block's linears for GGUF, as the block walk runs it."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor

from llmopt.blockwalk import Inlet, LiveBlock
from llmopt.errors import RequestError, about
from llmopt.formats.checkpoint import Checkpoint
from llmopt.formats.codec import decode
from llmopt.grids import ggml
from llmopt.grids.ggml import BlockTensor
from llmopt.grids.ggml.affine import to_blocks
from llmopt.model.layout import ggml_layout
from llmopt.verbs.shared.records import RoundingErrors
from llmopt.verbs.shared.solving import Solver, solved_rows

#: what the ledger says of a tensor that is as it was
_MOVED = {"exact": True, "error": 0.0, "how": "moved"}


class Encode:
    """Blocks of ggml for every linear that is to have them.

    types: by linear. importance: float32 [cols] of linears' inputs, for a walk without data.
    sequential: each input's statistics see what was encoded before it in the same block.
    """

    changes = True

    def __init__(
        self,
        checkpoint: Checkpoint,
        solver: Solver,
        types: Mapping[str, str],
        importance: Mapping[str, Tensor],
        *,
        sequential: bool,
    ) -> None:
        self._checkpoint, self._solver, self._types = checkpoint, solver, types
        self._importance, self._sequential = importance, sequential

    def apply(self, block: LiveBlock) -> None:
        """Move what the source holds exactly; encode the rest, one type at a time."""
        for inlet in block.inlets(self._solver.wanted, sequential=self._sequential):
            self._encode(inlet)

    def refuse_what_is_not_exact(self) -> None:
        """RequestError where a quantized linear's values do not fit, whatever layouts said."""
        for name in sorted(self._types.keys() & self._checkpoint.layers.keys()):
            type_id = self._types[name]
            moved = self._moved(name, type_id)
            if isinstance(moved, str):
                raise RequestError(
                    f"{name} is not exact as {type_id}: {moved}",
                    hint="without --exact it is rounded, and the error is reported",
                )

    def _encode(self, inlet: Inlet) -> None:
        together: dict[str, list[str]] = defaultdict(list)
        for name in inlet.names:
            type_id = self._types.get(name)
            if type_id is None:
                continue
            moved = self._moved(name, type_id)
            if isinstance(moved, str):
                together[type_id].append(name)
            else:
                inlet.replace(name, moved, _MOVED)
        for type_id, names in together.items():
            self._solve(inlet, names, type_id)

    def _moved(self, name: str, type_id: str) -> BlockTensor | str:
        """A linear in blocks of the type, or whose integers they hold unchanged; or why not."""
        if name not in self._checkpoint.layers:
            return "plain weights are rounded"
        layer = self._checkpoint.read_layer(name)
        if not isinstance(layer, BlockTensor):
            return to_blocks(layer, type_id)
        return layer if layer.grid == type_id else f"{layer.grid} values are not {type_id} values"

    def _solve(self, inlet: Inlet, names: list[str], type_id: str) -> None:
        def solve(weight: Tensor) -> BlockTensor:
            if inlet.statistics is None:
                return self._solver.encode(weight, self._importance.get(names[0]), type_id)
            solved = self._solver.solve(weight, inlet.statistics, ggml_layout(type_id))
            assert isinstance(solved, BlockTensor)
            return solved

        check = partial(ggml.check_range, type_id)
        made: dict[str, list[Tensor]] = {name: [] for name in names}
        found = {name: RoundingErrors(inlet.statistics) for name in names}
        for name, weight, solved, rows in solved_rows(inlet, names, check, solve):
            part = replace(solved, data=solved.data[rows].clone(), losses=None)
            losses = None if solved.losses is None else solved.losses[rows]
            found[name].add(decode(part), weight, losses)
            made[name].append(part.data)
        for name in names:
            with about(name):
                record = found[name].record() | {"exact": found[name].exact, "how": "rounded"}
            data = made.pop(name)
            encoded = BlockTensor(grid=type_id, data=torch.cat(data) if len(data) > 1 else data[0])
            inlet.replace(name, encoded, record)
