"""Made-up measurements: as small as a test needs, with any member replaced."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from llmopt.model.results import Bench, parse
from llmopt.report.comparison import Comparison
from llmopt.report.manifest import Manifest

Entry = dict[str, Any]


def _entry(
    name: str, megabytes: float, kl: float | None, *, metrics: dict[str, Any] | None = None,
    **members: Any,
) -> Entry:  # fmt: skip
    """A model whose KL interval is ±10% of its mean, and which passes one gate."""
    compared = {
        "size.ratio": megabytes / 100,
        "kl.mean": kl and {"value": kl, "low": kl * 0.9, "high": kl * 1.1},
        "kl.median": kl,
        "kl.p99": 1.0,
        "kl.max": 9.0,
        "agreement": {"value": 0.95, "low": 0.94, "high": 0.96},
        "flips.lost": 0.02,
        "flips.gained": 0.01,
        "flips.changed": 0.02,
        "perplexity.ratio": {"value": 1.01, "low": 1.008, "high": 1.012},
    }
    return {
        "name": name,
        "format": "gptq",
        "digest": "sha256:" + "0" * 64,
        "is_base": False,
        "metrics": {
            "size.bytes": round(megabytes * 1e6),
            "bits_per_weight": 4.3,
            "perplexity": {"value": 12.345, "low": 12.1, "high": 12.6},
            **(compared if kl is not None else {}),
            **(metrics or {}),
        },
        "gates": [{"gate": "kl.mean < 0.5", "value": kl, "passed": True}],
        **members,
    }


@pytest.fixture
def entry() -> Callable[..., Entry]:
    return _entry


@pytest.fixture
def base() -> Entry:
    return _entry("original", 100, None, is_base=True, format="hf", gates=[])


@pytest.fixture
def comparison() -> Callable[..., Comparison]:
    def make(*entries: Entry, speeds: Any = None, manifests: Any = None) -> Comparison:
        corpus = {"name": "demo/evaluation", "sha256": "e" * 64, "windows": 8, "length": 512}
        bench = parse(Bench, {"schema": 2, "corpus": corpus, "entries": list(entries)}, "it")
        found = {name: parse(Manifest, each, "it") for name, each in (manifests or {}).items()}
        return Comparison(bench.corpus, None, tuple(bench.entries), speeds or {}, found)

    return make


def linear(name: str, grid: str, **members: Any) -> dict[str, Any]:
    layout = {"grid": grid, "group_size": 128, "symmetric": True}
    entry = {"name": name, "actions": ["quantized"], "shape": [8, 128], "bytes": 528}
    return entry | {"layout": layout, "to": f"{grid} g128"} | members


@pytest.fixture
def manifest() -> dict[str, Any]:
    return {
        "schema": 1,
        "verb": "quantize",
        "settings": {"method": "gptq", "symmetric": True, "calibration": {"sequences": 128}},
        "parents": [{"role": "model", "name": "demo", "digest": "sha256:" + "a" * 64}],
        "corpus": {"name": "demo/calibration", "sha256": "c" * 64},
        "seed": 0,
        "versions": {"llmopt": "0.1.0", "torch": "2.13.0"},
        "digest": "sha256:" + "d" * 64,
        "ledger": [
            linear("w1", "int4", error=0.05),
            linear("w2", "int8", error=0.2, why="asked"),
            {"name": "norm", "actions": ["kept"], "why": "not linear", "shape": [8], "bytes": 16},
            {"name": "head", "actions": ["tied"], "why": "shares embed", "shape": [8], "bytes": 0},
        ],
    }
