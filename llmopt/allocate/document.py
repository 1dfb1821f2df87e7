"""allocation.json: what an allocate step leaves for the quantize step and for readers. No torch."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING

from llmopt.model.change import Change
from llmopt.model.layout import Layout
from llmopt.specs.base import FormatSpec

if TYPE_CHECKING:
    from llmopt.allocate.search import Allocation
    from llmopt.allocate.sensitivity import Group

FILE = "allocation.json"


def table(groups: Sequence[Group], chosen: Sequence[Layout | None]) -> list[dict[str, object]]:
    """One row a group: its linears, and the predicted KL divergence of each of its options."""
    return [
        {
            "linears": list(group.names),
            "kind": group.kind,
            "weights": group.weights,
            "chosen": None if setting is None else setting.label,
            "options": [
                {
                    "setting": option.setting.label,
                    "bits_per_weight": round(option.bytes * 8 / group.weights, 4),
                    "kl": _rounded(option.cost),
                }
                for option in group.all_options
            ],
        }
        for group, setting in zip(groups, chosen, strict=True)
    ]


def document(groups: Sequence[Group], found: Allocation, budget: int) -> dict[str, object]:
    """What allocation.json says."""
    weights = sum(group.weights for group in groups)
    return {
        "schema": 1,
        "bytes": found.bytes,
        "budget_bytes": budget,
        "bits_per_weight": round(found.bytes * 8 / weights, 4),
        "predicted_kl": _rounded(found.measured),
        "modelled_kl": _rounded(found.modelled),
        "corrections": {kind: _rounded(value) for kind, value in found.corrections.items()},
        "exchanges": found.exchanges,
        "linears": {
            name: asdict(setting)
            for group, setting in zip(groups, found.settings, strict=True)
            for name in group.names
        },
        "sensitivity": table(groups, found.settings),
    }


def read(folder: Path) -> tuple[dict[str, Layout], dict[str, object]]:
    """What the document in an allocation's folder chose for each linear, and all else it says."""
    found = json.loads((folder / FILE).read_text(encoding="utf-8"))
    linears = {name: Layout(**members) for name, members in found.pop("linears").items()}
    return linears, found


def settled(
    changes: Sequence[Change], chosen: Mapping[str, Layout], spec: FormatSpec
) -> Iterator[Change]:
    """The changes with what an allocation chose in the place of options."""
    for change in changes:
        if not change.options:
            yield change
            continue
        rows, cols = change.shape
        setting = chosen[change.module]
        size = setting.bytes((rows, cols), spec)
        yield replace(change, layout=setting, bytes=size, options=())


def _rounded(value: float) -> float:
    return float(f"{value:.6g}")
