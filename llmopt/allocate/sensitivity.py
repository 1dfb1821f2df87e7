"""What each setting of each group of linears costs, from what the backward walk saw of them.

To second order, quantization errors D of a linear's weight change the model's output by a mean KL
divergence of

    1/2 sum over outputs r of fisher[r] * D_r H D_r^T    nats a token,

with H = E[x x^T] of its inputs and fisher[r] = E[g_r^2] of its outputs' gradients (outputs taken
as independent of each other, and of the inputs). Costs of different linears add up.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from llmopt.allocate.budget import Option, lower_hull
from llmopt.blockwalk.gradient import InletSensitivity
from llmopt.blockwalk.weights import LiveWeights
from llmopt.errors import about
from llmopt.formats.safetensors import read_tensor, write_file
from llmopt.formats.safetensors_header import read_file_headers, read_metadata
from llmopt.formats.tensor_header import TensorHeader
from llmopt.linalg import InputStatistics
from llmopt.model.change import Change
from llmopt.model.layout import Layout
from llmopt.specs.base import FormatSpec
from llmopt.specs.families import Naming

#: (weight [rows, cols] float32, its inputs' statistics, settings) -> the values it would get
Solve = Callable[[Tensor, InputStatistics, Layout], Tensor]


@dataclass(frozen=True)
class Group:
    """Linears that get one setting, because they share an input and engines compute them at once.

    kind: what groups of the same role in other blocks have in common. options: those on the
    lower convex hull, the smallest first. all_options: with those that are not.
    """

    names: tuple[str, ...]
    kind: str
    weights: int
    options: tuple[Option[Layout], ...]
    all_options: tuple[Option[Layout], ...]


class Sensitivity:
    """Visits blocks of a backward walk; keeps costs, and quantized weights, in a folder.

    Weights are kept as float16 and only those of options on the hull, for measurements to come:
    that takes disk space of 2 bytes a weight and option.
    """

    def __init__(
        self,
        naming: Naming,
        changes: Sequence[Change],
        spec: FormatSpec,
        solve: Solve,
        folder: Path,
    ) -> None:
        self._naming, self._spec, self._solve, self._folder = naming, spec, solve, folder
        self._changes = {change.module: change for change in changes if change.options}
        folder.mkdir(parents=True, exist_ok=True)

    def __call__(self, block: int, seen: list[InletSensitivity], weights: LiveWeights) -> None:
        """Try all options of a block's linears and write what came of them."""
        costs: dict[tuple[str, Layout], float] = {}
        values: dict[str, Tensor] = {}
        for one in seen:
            for options, names in self._alike(one.names).items():
                parts = {name: _weight(weights, name) for name in names}
                for option in options:
                    changed = self._try(parts, one, option)
                    for name, value in changed.items():
                        values[f"{name}@{option.label}"] = value.half()
                        costs[name, option] = cost(value - parts[name], one, name)
        groups = self._groups(block, costs)
        held = {f"{n}@{o.setting.label}" for g in groups for n in g.names for o in g.options}
        note = json.dumps([_as_data(group) for group in groups])
        values = {name: value for name, value in values.items() if name in held}
        write_file(self._part(block), values, {"groups": note})

    def groups(self) -> list[Group]:
        """All groups, in the order of the blocks."""
        return [
            _from_data(data)
            for block in range(self._naming.block_count)
            for data in json.loads(read_metadata(self._part(block))["groups"])
        ]

    def value(self, name: str, setting: Layout) -> Tensor:
        """The values float16 [out, in] that a linear gets with a setting of its group's hull."""
        return read_tensor(self._headers[f"{name}@{setting.label}"])

    @cached_property
    def _headers(self) -> Mapping[str, TensorHeader]:
        found: dict[str, TensorHeader] = {}
        for block in range(self._naming.block_count):
            found |= read_file_headers(self._part(block))
        return found

    def _alike(self, names: Sequence[str]) -> dict[tuple[Layout, ...], list[str]]:
        """Names that share their options, and so can be solved at once."""
        found: dict[tuple[Layout, ...], list[str]] = defaultdict(list)
        for name in names:
            if name in self._changes:
                found[self._changes[name].options].append(name)
        return found

    def _try(
        self, parts: dict[str, Tensor], seen: InletSensitivity, option: Layout
    ) -> dict[str, Tensor]:
        with about(", ".join(parts)):
            solved = self._solve(torch.cat(list(parts.values())), seen.statistics, option)
        rows = [part.shape[0] for part in parts.values()]
        return dict(zip(parts, torch.split(solved, rows), strict=True))

    def _groups(self, block: int, costs: Mapping[tuple[str, Layout], float]) -> list[Group]:
        together: dict[tuple[str, tuple[Layout, ...]], list[str]] = defaultdict(list)
        for inlet in self._naming.linears(block):
            for options, names in self._alike(inlet).items():
                for name in names:
                    shared = inlet[0] if self._spec.fuses else name
                    together[self._naming.pool_of(shared) or shared, options].append(name)
        found = []
        for (role, options), names in together.items():
            shapes = [self._changes[name].shape for name in names]
            tried = tuple(
                Option(
                    option,
                    sum(option.bytes((rows, cols), self._spec) for rows, cols in shapes),
                    sum(costs[name, option] for name in names),
                )
                for option in options
            )
            kind = role.removeprefix(f"{self._naming.blocks}.{block}.")
            weights = sum(rows * cols for rows, cols in shapes)
            found.append(Group(tuple(names), kind, weights, tuple(lower_hull(tried)), tried))
        return found

    def _part(self, block: int) -> Path:
        return self._folder / f"block-{block:05d}.safetensors"


def cost(change: Tensor, seen: InletSensitivity, name: str) -> float:
    """The KL divergence in nats a token that `change` [out, in] of a linear's weight predicts."""
    lost = seen.statistics.losses(change)
    return 0.5 * float((seen.fisher[name].to(lost.device) * lost).sum().clamp_(min=0))


def _weight(weights: LiveWeights, name: str) -> Tensor:
    return weights.oriented(name, weights.read(f"{name}.weight")).float().contiguous()


def _as_data(group: Group) -> dict[str, Any]:
    tried = [asdict(option) for option in group.all_options]
    return {"names": group.names, "kind": group.kind, "weights": group.weights, "options": tried}


def _from_data(data: dict[str, Any]) -> Group:
    tried = tuple(
        Option(Layout(**each["setting"]), each["bytes"], each["cost"]) for each in data["options"]
    )
    names = tuple(data["names"])
    return Group(names, data["kind"], data["weights"], tuple(lower_hull(tried)), tried)
