"""Made-up measurements: as small as a test needs, with any member replaced."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from llmopt.report.results import Results

Entry = dict[str, Any]


def _entry(name: str, megabytes: float, kl: float | None, **members: Any) -> Entry:
    """A model whose KL interval is ±10% of its mean, and which passes one gate."""
    spread = None if kl is None else {"value": kl, "low": kl * 0.9, "high": kl * 1.1}
    return {
        "name": name,
        "format": "gptq",
        "bytes": round(megabytes * 1e6),
        "bits_per_weight": 4.3,
        "digest": "sha256:" + "0" * 64,
        "is_base": False,
        "perplexity": {"value": 12.345, "low": 12.1, "high": 12.6},
        "perplexity_ratio": {"value": 1.01, "low": 1.008, "high": 1.012},
        "kl": None if spread is None else {"mean": spread, "median": kl, "p99": 1.0, "max": 9.0},
        "agreement": {"value": 0.95, "low": 0.94, "high": 0.96},
        "flips": {"lost": 0.02, "gained": 0.01, "changed": 0.02},
        "size_ratio": megabytes / 100,
        "gates": [{"gate": "kl.mean < 0.5", "value": kl, "passed": True}],
        **members,
    }


@pytest.fixture
def entry() -> Callable[..., Entry]:
    return _entry


@pytest.fixture
def base() -> Entry:
    empty = dict.fromkeys(("perplexity_ratio", "agreement", "flips", "size_ratio"))
    return _entry("original", 100, None, is_base=True, format="hf", gates=[], **empty)


@pytest.fixture
def results() -> Callable[..., Results]:
    def make(*entries: Entry, speed: Any = None, manifests: Any = None) -> Results:
        bench = {
            "schema": 1,
            "corpus": {"name": "demo/evaluation", "sha256": "e" * 64, "windows": 8, "length": 512},
            "base": None,
            "entries": list(entries),
        }
        return Results.from_documents(bench, speed or {}, manifests or {})

    return make


@pytest.fixture
def manifest() -> dict[str, Any]:
    return {
        "schema": 1,
        "verb": "quantize",
        "settings": {"method": "gptq", "symmetric": True, "calibration": {"sequences": 128}},
        "parents": [{"name": "demo", "digest": "sha256:" + "a" * 64}],
        "corpus": {"name": "demo/calibration", "sha256": "c" * 64},
        "seed": 0,
        "versions": {"llmopt": "0.1.0", "torch": "2.13.0"},
        "digest": "sha256:" + "d" * 64,
        "ledger": [
            {"name": "w1", "action": "quantized", "to": "int4 g128", "error": 0.05, "why": ""},
            {"name": "w2", "action": "quantized", "to": "int8 g128", "error": 0.2, "why": "asked"},
            {"name": "norm", "action": "kept", "to": None, "error": None, "why": "not linear"},
            {"name": "head", "action": "tied", "to": None, "error": None, "why": "shares embed"},
        ],
    }
