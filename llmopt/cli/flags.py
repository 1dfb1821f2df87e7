"""Which recipe key each option of a command sets: the one place that says so.

A command builds its recipe from this table, and errors name the option that was typed by it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from llmopt.recipe.models import RESERVED_IDS
from llmopt.recipe.source import Option

_RECIPE = {"model": "model", "revision": "revision", "seed": "seed"}
_TEXTS = {
    "calibration": "data.calibration.source",
    "field": "data.calibration.field",
    "sequences": "data.calibration.sequences",
    "length": "data.calibration.length",
    "evaluation": "data.evaluation.source",
}
_BUDGET = {
    "damping": "damping",
    "refine": "refine",
    "target_bpw": "target_bpw",
    "target_size": "target_size",
    "candidate": "candidates",
    "gate": "gate",
}
_ROUNDING = {
    "grid": "grid",
    "bits": "grid",
    "group_size": "group_size",
    "asymmetric": "symmetric",
    "method": "method",
}


def _within(verb: str, keys: Mapping[str, str]) -> dict[str, str]:
    return {parameter: f"{verb}.{key}" for parameter, key in keys.items()}


#: a command's parameter -> the key of its one-step recipe, without the step's position
KEYS: dict[str, dict[str, str]] = {
    "quantize": _RECIPE | _TEXTS | _within("quantize", _ROUNDING | _BUDGET | {
        "format_": "format",
        "transform": "transform",
        "activations": "activations",
        "scale_search": "scale_search",
        "act_order": "act_order",
        "skip": "overrides",
        "head": "head",
    }),
    "convert": _RECIPE | _TEXTS | _within("convert", {"to": "to"} | _ROUNDING | _BUDGET | {
        "exact": "exact",
        "dtype": "dtype",
        "search": "search",
        "imatrix": "imatrix",
        "type_": "overrides",
        "split_size": "split_size",
        "name": "name",
        "metadata": "metadata",
    }),
    "bench": {"seed": "seed", "against": "model"} | _within("bench", {
        "artifacts": "from",
        "gate": "gates",
        "speed": "speed",
        "runtime": "runtime",
    }) | {
        "evaluation": "data.evaluation.source",
        "field": "data.evaluation.field",
        "windows": "data.evaluation.windows",
        "length": "data.evaluation.length",
    },
    "inspect": {
        "model": "model",
        "candidate": "quantize.candidates",
        "calibration": "data.calibration.source",
        "sequences": "data.calibration.sequences",
    },
}  # fmt: skip
#: what giving a switch means for its key
_SWITCHES = {"asymmetric": False, "head": True, "exact": True, "speed": False}
_NAMES = {"model": "MODEL", "artifacts": "ARTIFACTS", "speed": "--no-speed"}


def spelled(parameter: str) -> str:
    """How a parameter is written on the command line."""
    return _NAMES.get(parameter) or f"--{parameter.strip('_').replace('_', '-')}"


def flags(command: str, typed: Mapping[str, Any]) -> dict[str, Option]:
    """Keys of a command's recipe -> their options; of two for one key, the one that was typed."""
    found: dict[str, Option] = {}
    for parameter, key in KEYS[command].items():
        if key not in found or typed.get(parameter) is not None:
            found[key] = Option(spelled(parameter), _SWITCHES.get(parameter))
    return found


def recipe_of(
    command: str, typed: Mapping[str, Any], out: Path, verb: str | None = None
) -> dict[str, Any]:
    """The one-step recipe that a command's options stand for; None is what was not typed."""
    name = re.sub(r"[^A-Za-z0-9_.-]", "_", out.absolute().name).lstrip("._-")[:80] or command
    verb = verb or command
    recipe: dict[str, Any] = {"version": 1, "name": name}
    settings: dict[str, Any] = {}
    for parameter, key in KEYS[command].items():
        value, (first, *rest) = typed.get(parameter), key.split(".")
        if value is None:
            continue
        target = settings if first == verb else recipe if not rest else recipe.setdefault(first, {})
        for part in rest[:-1]:
            target = target.setdefault(part, {})
        target[rest[-1] if rest else first] = value
    step = f"{command}-{name}" if name in {*RESERVED_IDS, "demo"} else name
    return recipe | {"steps": [{"id": step, verb: settings}]}
