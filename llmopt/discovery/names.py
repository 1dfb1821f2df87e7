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

from llmopt.formats.stacks import rows_of
from llmopt.specs.naming import linear_pattern


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

    def of(self, matrix: Tensor, part: int) -> Tensor:
        """A linear's weight [out, in], a view of an expert's matrix."""
        oriented = matrix.mT if self.transposed else matrix
        return rows_of(oriented, part, max(1, len(self.parts)), interleaved=self.interleaved)

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

    expert_names: a linear of an expert -> the same. joined: a tensor of the model -> the names of
    those that have its rows.
    """

    names: dict[str, str] = field(default_factory=dict)
    stacks: list[Stack] = field(default_factory=list)
    expert_names: dict[str, str] = field(default_factory=dict)
    joined: dict[str, list[str]] = field(default_factory=dict)

    def joined_in(self, blocks: str) -> dict[str, list[str]]:
        """Tensors inside a block, and those, inside a block, that have their rows."""
        found: dict[str, list[str]] = {}
        for path, names in self.joined.items():
            inside = path.removeprefix(f"{blocks}.")
            index, _, inner = inside.partition(".")
            if index.isdecimal():
                found[inner] = [name.partition(f".{index}.")[2] for name in names]
        return found

    def renamed(self) -> list[tuple[str, str]]:
        """Modules, and what checkpoints call them, the longest first; `*` stands for a number."""
        pairs = {
            linear_pattern(a): linear_pattern(b)
            for a, b in {**self.names, **self.expert_names}.items()
        }
        moves = {_shortest(a, b, pairs) for a, b in pairs.items() if a != b}
        found = sorted(moves, key=lambda move: (-move[0].count("."), move))
        for move in list(found):
            rest = [each for each in found if each != move]
            back = sorted(((new, old) for old, new in rest), key=lambda each: -each[0].count("."))
            there = all(apply_moves(a, rest) == b for a, b in pairs.items())
            if there and all(apply_moves(b, back) == a for a, b in pairs.items()):
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
        back = (x for x, y in pairs.items() if y.startswith(new + "."))
        there = all(new + x[len(old) :] == y for x, y in inside)
        if there and all(x.startswith(old + ".") for x in back):
            return old, new
    return ours, theirs


def apply_moves(name: str, moves: Sequence[tuple[str, str]]) -> str:
    """`name` with the first module that it is in called otherwise."""
    for old, new in moves:
        if name == old or name.startswith(old + "."):
            return new + name[len(old) :]
    return name


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
    return _Matcher(model, saved, stacked).found()


class _Matcher:
    """Which of the saved tensors the model's are."""

    def __init__(
        self, model: Any, saved: Mapping[str, Tensor], stacked: Mapping[str, bool]
    ) -> None:
        self._saved, self._stacked = saved, stacked
        self._state: dict[str, Tensor] = model.state_dict()
        self._places = {_print(value): name for name, value in saved.items()}
        embedding = model.get_input_embeddings().weight
        place = embedding.data_ptr()
        first = next(path for path, value in self._state.items() if value.data_ptr() == place)
        self._tied = {
            path
            for path, value in self._state.items()
            if path not in saved and path != first and value.shape == embedding.shape
            if torch.equal(value, embedding)
        }

    def found(self) -> StoredNames:
        found, used = StoredNames(), set[str]()
        left: dict[str, Tensor] = {}
        for path, value in self._state.items():
            name = self._name(path, value)
            if name is not None:
                found.names[path] = name
                used.add(name)
            if path in self._stacked:
                used.update(self._expert_names(path, value, name, found))
            elif name is None and path not in self._tied and value.ndim:
                left[path] = value
        rest = {name: value for name, value in self._saved.items() if name not in used}
        for path, value in left.items():
            if parts := _joined(value, rest):
                found.joined[path] = parts
        return found

    def _name(self, path: str, value: Tensor) -> str | None:
        if path in self._tied:
            return None  # the embedding's has a name
        if path in self._saved and torch.equal(self._saved[path], value):
            return path  # constants that several modules have
        return self._places.get(_print(value))

    def _expert_names(
        self, path: str, value: Tensor, name: str | None, found: StoredNames
    ) -> list[str]:
        """Note how checkpoints hold a parameter of several matrices, and return their names."""
        stack, names = _stack(path, value, None if name else self._places)
        if stack is None:
            return []
        if name:
            stack = replace(stack, transposed=self._stacked[path])
            found.expert_names[_of_expert(path)] = _of_expert(name)
        found.stacks.append(stack)
        found.expert_names.update(_expert_moves(stack, names))
        return names


def _joined(value: Tensor, saved: Mapping[str, Tensor]) -> list[str]:
    """The saved tensors that have its rows, one after the other; none where they are not all."""
    parts: list[str] = []
    start = 0
    while start < len(value):
        for name, part in saved.items():
            rows = value[start : start + len(part)] if part.ndim == value.ndim else value[:0]
            if rows.shape == part.shape and torch.equal(rows, part):
                parts.append(name)
                start += len(part)
                break
        else:
            return []
    return parts


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
                    rows_of(matrix, part, parts, interleaved=interleaved) for part in range(parts)
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
