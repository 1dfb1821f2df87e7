"""What runs of one type with several configs agree on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from llmopt.discovery.reader import Inlet

#: what was found of a model, or a part of that
Json = Mapping[str, Any]


def merged(found: Sequence[Json]) -> dict[str, Any]:
    """What runs of a type with several configs agree on.

    Blocks with the same linears are one kind. Linears share an input if they do in all runs, and
    where runs differ each inlet waits for all before it, in the order of the run that had most.
    """
    kinds: dict[frozenset[str], list[list[list[Inlet]]]] = {}
    folds: dict[frozenset[str], list[list[Json]]] = {}
    for each in found:
        for rounds, known in zip(each["kinds"], each["folds"], strict=True):
            linears = frozenset(path for some in rounds for inlet in some for path in inlet)
            kinds.setdefault(linears, []).append(rounds)
            folds.setdefault(linears, []).append(known)
    result = dict(found[0])
    result["kinds"] = [_agreed(runs) for runs in kinds.values()]
    result["folds"] = [_holding(runs) for runs in folds.values()]
    result["routers"] = sorted({path for each in found for path in each["routers"]})
    result["renamed"] = [list(move) for move in {tuple(m): 0 for f in found for m in f["renamed"]}]
    result["renamed"].sort(key=lambda move: (-move[0].count("."), move))
    return result


def _holding(runs: Sequence[list[Json]]) -> list[Json]:
    """The folds of norms that hold in all runs, and those of linears that do in one.

    Where shapes of linears do not fit, as those of shared values, nothing is tried.
    """
    found: list[Json] = []
    for fold in (fold for run in runs for fold in run):
        if fold not in found and (fold["linear"] or all(fold in run for run in runs)):
            found.append(fold)
    return found


def _agreed(runs: Sequence[list[list[Inlet]]]) -> list[list[Inlet]]:
    if all(run == runs[0] for run in runs):
        return runs[0]
    longest = max(runs, key=len)
    rounds: list[list[Inlet]] = []
    for inlet in (inlet for some in longest for inlet in some):
        parts: dict[tuple[int, ...], list[str]] = {}
        for path in inlet:
            parts.setdefault(tuple(_place(run, path) for run in runs), []).append(path)
        rounds += [[tuple(paths)] for paths in parts.values()]
    return rounds


def _place(run: list[list[Inlet]], path: str) -> int:
    """Which inlet of a run a linear is in."""
    inlets = [inlet for some in run for inlet in some]
    return next(index for index, inlet in enumerate(inlets) if path in inlet)
