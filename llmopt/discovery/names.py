"""What checkpoints call a model's tensors: found by their values in what save_pretrained writes."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor


@dataclass(frozen=True)
class Stack:
    """A parameter that holds a matrix for each expert, and what checkpoints have in its place.

    path: in the model. count: of experts. transposed: each is stored as [in, out]. parts: what
    checkpoints call the linears that an expert's rows are, one after the other; empty where they
    hold the parameter as it is. interleaved: row r is row r // n of part r % n.
    """

    path: str
    count: int
    transposed: bool
    parts: tuple[str, ...] = ()
    interleaved: bool = False

    def linears(self, inner: str) -> list[str]:
        """The linears' paths, given the parameter's; `*` stands for the expert."""
        owner, _, leaf = inner.removesuffix(".weight").rpartition(".")
        if inner.endswith(".weight"):
            return [f"{owner}.{leaf}.*"]
        return [f"{owner}.*.{part}" for part in self.parts or (leaf,)]

    def inside(self, blocks: str) -> str:
        """The path inside a block, given the path of the blocks."""
        return self.path.removeprefix(f"{blocks}.").partition(".")[2]

    def as_json(self, blocks: str) -> dict[str, Any]:
        """For the data of a family."""
        inner = self.inside(blocks)
        return {
            "path": inner,
            "linears": self.linears(inner),
            "transposed": self.transposed,
            "interleaved": self.interleaved,
            "whole": not self.parts,
        }


@dataclass
class StoredNames:
    """names: a tensor of the model -> its name in checkpoints, where they hold it as it is.

    unexplained: tensors of the checkpoint that no tensor of the model is found in.
    """

    names: dict[str, str] = field(default_factory=dict)
    stacks: list[Stack] = field(default_factory=list)
    unexplained: list[str] = field(default_factory=list)
    expert_names: dict[str, str] = field(default_factory=dict)

    def renamed(self) -> list[tuple[str, str]]:
        """Modules, and what checkpoints call them, the longest first; `*` stands for a number."""
        pairs = {starred(a): starred(b) for a, b in {**self.names, **self.expert_names}.items()}
        moves = {_shortest(a, b, pairs) for a, b in pairs.items() if a != b}
        found = sorted(moves, key=lambda move: (-move[0].count("."), move))
        for move in list(found):
            rest = [each for each in found if each != move]
            if all(apply_moves(a, rest) == b for a, b in pairs.items()):
                found = rest
        return found


def _shortest(ours: str, theirs: str, pairs: Mapping[str, str]) -> tuple[str, str]:
    """The outermost module whose change of name explains this one and contradicts no other."""
    a, b = ours.split("."), theirs.split(".")
    ends = 0
    while ends + 1 < min(len(a), len(b)) and a[-1 - ends] == b[-1 - ends]:
        ends += 1
    for kept in range(ends, 0, -1):
        old, new = ".".join(a[:-kept]), ".".join(b[:-kept])
        inside = ((x, y) for x, y in pairs.items() if x.startswith(old + "."))
        if all(new + x[len(old) :] == y for x, y in inside):
            return old, new
    return ours, theirs


def apply_moves(name: str, moves: Sequence[tuple[str, str]]) -> str:
    """`name` with the first module that it is in called otherwise."""
    for old, new in moves:
        if name == old or name.startswith(old + "."):
            return new + name[len(old) :]
    return name


def starred(name: str) -> str:
    """A name with `*` for each number that is a part of it."""
    return ".".join("*" if piece.isdecimal() else piece for piece in name.split("."))


def _without_common_end(one: str, other: str) -> tuple[str, str]:
    a, b = one.split("."), other.split(".")
    while len(a) > 1 and len(b) > 1 and a[-1] == b[-1]:
        a.pop()
        b.pop()
    return ".".join(a), ".".join(b)


def stored_names(model: Any, stacked: Mapping[str, bool]) -> StoredNames:
    """Compare the model's tensors, whose values are all different, with what it saves.

    stacked: the parameters that hold a matrix for each expert, and whether as [in, out].
    """
    with torch.no_grad():
        for buffer in model.buffers():
            if buffer.is_floating_point():  # zeros, which would all look alike
                buffer.add_(torch.rand_like(buffer))
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder, safe_serialization=True)
        saved: dict[str, Tensor] = {}
        for path in Path(folder).glob("*.safetensors"):
            saved |= load_file(path)
    places = {_print(value): name for name, value in saved.items()}
    found, used = StoredNames(), set[str]()
    known: set[int] = set()
    for path, value in model.state_dict().items():
        if value.data_ptr() in known and path not in saved:
            continue  # what is tied has the name of the first
        known.add(value.data_ptr())
        name = places.get(_print(value))
        if path in saved and name is not None and torch.equal(saved[path], value):
            name = path  # constants that several modules have
        if name is not None:
            found.names[path] = name
            used.add(name)
        if path in stacked:
            stack, names = _stack(path, value, None if name else places)
            if stack is not None and name:
                stack = replace(stack, transposed=stacked[path])
                ours, theirs = _of_expert(path), _of_expert(name)
                found.expert_names[ours] = theirs
            if stack is not None:
                found.stacks.append(stack)
                used.update(names)
                found.expert_names.update(_expert_moves(stack, names))
    found.unexplained = sorted(set(saved) - used)
    return found


def _expert_moves(stack: Stack, names: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Each linear of an expert in our model, and its name in the checkpoint."""
    linears = stack.linears(stack.path)
    for place, name in enumerate(names):
        expert, part = divmod(place, max(1, len(stack.parts)))
        ours = linears[part].replace("*", str(expert))
        yield f"{ours}.weight", name


def _stack(
    path: str, value: Tensor, places: Mapping[bytes, str] | None
) -> tuple[Stack | None, list[str]]:
    """How checkpoints hold a parameter of several matrices; places is None where as it is."""
    count = value.shape[0]
    if places is None:
        return Stack(path, count, transposed=False), []
    for transposed in (False, True):
        for parts, interleaved in ((1, False), (2, False), (2, True)):
            names = []
            for matrix in value.mT if transposed else value:
                rows = (
                    [matrix[part::parts] for part in range(parts)]
                    if interleaved
                    else list(matrix.chunk(parts))
                )
                names += [places.get(_print(each), "") for each in rows]
            if all(names):
                leaves = tuple(_leaf(name) for name in names[:parts])
                return Stack(path, count, transposed, leaves, interleaved), names
    return None, []


def _of_expert(path: str) -> str:
    """The first expert's part of a parameter, as a tensor of its own."""
    owner, _, leaf = path.removesuffix(".weight").rpartition(".")
    return f"{owner}.{leaf}.0.weight" if path.endswith(".weight") else f"{owner}.0.{leaf}.weight"


def _leaf(name: str) -> str:
    """What comes after an expert's number."""
    return re.split(r"\.\d+\.", name.removesuffix(".weight"))[-1]


def _print(value: Tensor) -> bytes:
    plain = value.detach().contiguous()
    kind = repr((tuple(plain.shape), str(plain.dtype)))
    return kind.encode() + plain.flatten().view(torch.uint8).numpy().tobytes()
