"""How the benchmarks print a value with its interval and keep their results."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any


def shown(found: dict[str, float], digits: int = 5) -> str:
    """``value [low, high]`` of a figure with its 95% interval."""
    return f"{found['value']:.{digits}f} [{found['low']:.{digits}f}, {found['high']:.{digits}f}]"


def save(results: Path, document: dict[str, Any], said: str, table: list[str]) -> None:
    """Write ``results``.json and, with what was asked above the table, ``results``.md."""
    results.parent.mkdir(parents=True, exist_ok=True)
    results.with_suffix(".json").write_text(json.dumps(document, indent=2) + "\n")
    results.with_suffix(".md").write_text("\n".join([said, "", *table]) + "\n")
