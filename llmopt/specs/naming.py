"""From the modules of a family to the names in one checkpoint, and back."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property

from llmopt.errors import RequestError
from llmopt.specs.family import FamilySpec, Inlets, Rounds

#: what only a layer that predicts further tokens (DeepSeek's, GLM's) has beside a block's tensors
AHEAD_IN_BLOCK = re.compile(r"\.(eh_proj|enorm|hnorm|shared_head)\.")
#: where other models (Qwen3-Next, MiMo) keep such layers
_AHEAD_ELSEWHERE = re.compile(r"(^|\.)mtp(_layers)?\.")
#: what engines make one module of, and call so, where a module has all of these linears
_FUSED = (
    ("qkv_proj", frozenset({"q_proj", "k_proj", "v_proj"}), ("q_proj", "k_proj", "v_proj")),
    ("gate_up_proj", frozenset({"gate_proj", "up_proj"}), ("gate_proj", "up_proj")),
)

#: pattern of a module's path, and what to put in its place
_Move = tuple[re.Pattern[str], str]


@dataclass(frozen=True, kw_only=True)
class Naming:
    """The names of one checkpoint.

    Checkpoints saved from a bare base model lack its prefix (gpt2's `h.0` for `transformer.h.0`);
    `rename` puts it back, because the tools that load quantized files expect it. All other
    methods give names as they are after that. `kinds` says of which kind each block is, and
    `experts` how many experts it has; that is empty where the family has none. `lacking`: linears
    of a kind that none of its blocks has: with this config the family may have others.
    """

    family: FamilySpec
    base: str
    head: str
    base_missing: bool = False
    block_count: int = 0
    kinds: tuple[int, ...] = ()
    experts: tuple[int, ...] = ()
    lacking: frozenset[str] = frozenset()

    def rename(self, stored: str) -> str:
        """The name in our files of a tensor of the checkpoint."""
        if self.base_missing and not stored.startswith(self.head + "."):
            stored = f"{self.base}.{stored}"
        if not stored.startswith((f"{self.base}.", f"{self.head}.")):
            return stored  # of another part
        return self.name(self.module(stored))

    def name(self, module: str) -> str:
        """The name in our files of a module or tensor of the text model."""
        return _under(_moved(module, self._moves), self.bases())

    def module(self, name: str) -> str:
        """The module or tensor of the text model that has this name in our files."""
        return _moved(_under(name, self._bases_back), self._moves_back)

    def parts(self, module: str) -> tuple[str, ...]:
        """The names of the tensors whose rows are a tensor of the text model, where several are."""
        match = self._in_model.match(module)
        parts = dict(self.family.joined).get(match[2], ()) if match else ()
        return tuple(_under(f"{match[1]}{part}", self.bases()) for part in parts if match)

    def aliases(self, name: str) -> tuple[str, ...]:
        """The names that a module has in transformers and in other checkpoints of the family."""
        if name != self.head and not name.startswith((f"{self.base}.", f"{self.head}.")):
            if self.family.text_config is None:
                return (name,)
            bare = name.removeprefix("model.")  # another part of a multimodal model
            return (name, f"model.{bare}" if name == bare else bare)
        path, found = self.module(name), [name]
        for each in layouts(self.family):
            if not each.base_missing:
                layout = replace(each, block_count=self.block_count)
                found += [layout.name(path), _under(path, layout.bases())]
        return tuple(dict.fromkeys(found))

    def fused(self, linears: Iterable[str]) -> dict[str, tuple[str, ...]]:
        """Which of these linears engines make one module of: its name -> their names."""
        found: dict[str, list[str]] = {}
        leaves: dict[str, set[str]] = {}
        for name in linears:
            parent, _, leaf = name.rpartition(".")
            if (experts := self._experts_of(name)) is not None:
                found.setdefault(experts, []).append(name)
            else:
                leaves.setdefault(parent, set()).add(leaf)
        groups = {name: tuple(parts) for name, parts in found.items()}
        for parent, present in leaves.items():
            for name, parts, ordered in _FUSED:
                if present >= parts:
                    groups[f"{parent}.{name}"] = tuple(f"{parent}.{part}" for part in ordered)
        return groups

    def bases(self) -> tuple[tuple[str, str], tuple[str, str]]:
        """(in the text model, in our files) of all but the head, and of the head."""
        return ((self.family.base, self.base), (self.family.head, self.head))

    @cached_property
    def _bases_back(self) -> list[tuple[str, str]]:
        return [(theirs, ours) for ours, theirs in self.bases()]

    @property
    def blocks(self) -> str:
        """What the names of all tensors in blocks begin with; `.<index>.` follows."""
        return f"{self.base}.{self.family.blocks}"

    @property
    def embedding(self) -> str:
        """The token embedding's module."""
        return self.name(f"{self.family.base}.{self.family.embedding}")

    def linears(self, block: int) -> Inlets:
        """The names of a block's linears, those that share an input together, in order."""
        return tuple(inlet for some in self.rounds(block) for inlet in some)

    def rounds(self, block: int) -> Rounds:
        """The same, in rounds.

        Those in one round do not depend on each other, and each round depends on those before it.
        """
        kind = self.family.kinds[self.kinds[block] if self.kinds else 0]
        count = self.experts[block] if self.experts else 0
        module = f"{self.family.base}.{self.family.blocks}.{block}"

        def named(paths: tuple[str, ...], expert: int) -> tuple[str, ...]:
            return tuple(self.name(f"{module}.{path}".replace("*", str(expert))) for path in paths)

        return tuple(
            tuple(
                named(paths, expert)
                for paths in some
                for expert in range(count if "*" in paths[0] else 1)
            )
            for some in kind
        )

    def rounds_within(
        self, block: int, needed: Callable[[str], int], budget: int
    ) -> Iterator[list[tuple[str, ...]]]:
        """Rounds, in several where what all inlets of one need is more than `budget`.

        `needed`: by a linear's name, in what the budget is counted in.
        """
        for inlets in self.rounds(block):
            some: list[tuple[str, ...]] = []
            size = 0
            for names in inlets:
                more = needed(names[0])
                if some and size + more > budget:
                    yield some
                    some, size = [], 0
                some.append(names)
                size += more
            if some:
                yield some

    def routers(self, block: int) -> tuple[str, ...]:
        """The names of what sends a block's tokens to its experts."""
        owner = f"{self.family.base}.{self.family.blocks}.{block}"
        return tuple(self.name(f"{owner}.{router}") for router in self.family.routers)

    def transposed(self, linear: str) -> bool:
        """Whether the checkpoint stores a plain linear of this name as [in, out]."""
        if linear == self.head:
            return False
        return self.family.conv1d or linear_pattern(linear) in self._transposed

    def pool_of(self, linear: str) -> str | None:
        """The name that an expert's linear has in common with the other experts', else None."""
        match = self._expert(linear)
        if match is None:
            return None
        return f"{match[1]}.*.{match[4]}" if match[4] else f"{match[1]}.*"

    def is_mtp(self, name: str) -> bool:
        """Whether a tensor is of multi-token prediction: a layer beside the model, for drafting."""
        block = self.block_of(name)
        if block is not None:
            return block >= self.block_count
        return _AHEAD_ELSEWHERE.search(name) is not None

    def block_of(self, name: str) -> int | None:
        """The block that a tensor belongs to; None outside the blocks."""
        match = self._in_block.match(name)
        return int(match[1]) if match else None

    def block_indices(self, stored: Iterable[str]) -> set[int]:
        """The blocks that these tensors of the checkpoint belong to."""
        indices = (self.block_of(self.rename(name)) for name in stored)
        return {index for index in indices if index is not None}

    def _experts_of(self, linear: str) -> str | None:
        """What holds the expert that has this linear, wherever in the checkpoint; else None."""
        match = self._anywhere.match(linear) if self._anywhere else None
        return match[1] if match else None

    def _expert(self, name: str) -> re.Match[str] | None:
        """(all experts of the block, block, expert, what is inside) of an expert's tensor."""
        return self._experts.match(name) if self._experts else None

    @cached_property
    def _in_model(self) -> re.Pattern[str]:
        inside = re.escape(f"{self.family.base}.{self.family.blocks}.")
        return re.compile(rf"({inside}\d+\.)(.+)")

    @cached_property
    def _in_block(self) -> re.Pattern[str]:
        return re.compile(re.escape(self.blocks) + r"\.(\d+)\.")

    @cached_property
    def _pools(self) -> str:
        """A pattern of what comes before an expert's number in the names of its block."""
        found = set()
        for path in self.family.linears:
            if "*" in path:
                start = f"{self.family.base}.{self.family.blocks}.0."
                name = self.name(start + path).removeprefix(f"{self.blocks}.0.")
                found.add(re.escape(name[: name.index("*")].removesuffix(".")))
        return "|".join(sorted(found))

    @cached_property
    def _experts(self) -> re.Pattern[str] | None:
        if not self._pools:
            return None
        pools = rf"({re.escape(self.blocks)}\.(\d+)\.(?:{self._pools}))"
        return re.compile(rf"{pools}\.(\d+)(?:\.(.+))?$")

    @cached_property
    def _anywhere(self) -> re.Pattern[str] | None:
        return re.compile(rf"(.+\.(?:{self._pools}))\.\d+(?:\.|$)") if self._pools else None

    @cached_property
    def _transposed(self) -> frozenset[str]:
        """The patterns of linears that are stored as [in, out]."""
        start = f"{self.family.base}.{self.family.blocks}.*."
        stacks = (s for s in self.family.stacks if s.transposed and s.whole)
        return frozenset(self.name(start + path) for stack in stacks for path in stack.linears)

    @cached_property
    def _moves(self) -> list[_Move]:
        return [_move(old, new) for old, new in self.family.renamed]

    @cached_property
    def _moves_back(self) -> list[_Move]:
        back = sorted(self.family.renamed, key=lambda move: -move[1].count("."))
        return [_move(new, old) for old, new in back]


def naming_of(family: FamilySpec, stored: Iterable[str]) -> Naming:
    """How a checkpoint with these tensor names calls the family's modules."""
    names = set(stored)
    found = [layout for layout in layouts(family) if layout.block_indices(names)]
    if not found:
        raise RequestError(
            f"the weights have no tensor named {family.base}.{family.blocks}.0.*, "
            f"which a {family.id} model has"
        )
    with_head = (each for each in found if any(n.startswith(each.head + ".") for n in names))
    layout = next(with_head, found[0])
    blocks = layout.block_indices(names)
    blocks -= layout.block_indices(name for name in names if AHEAD_IN_BLOCK.search(name))
    if blocks != set(range(len(blocks))):
        lost = min(set(range(max(blocks))) - blocks)
        raise RequestError(f"the weights have no tensor of block {lost}")
    layout = replace(layout, block_count=len(blocks))
    _check_unique(names, layout)
    return _with_blocks(layout, names)


def layouts(family: FamilySpec) -> list[Naming]:
    """The ways in which checkpoints of the family name their tensors, most usual first."""
    plain = [
        Naming(family=family, base=base, head=head)
        for base, head in family.stored_as or ((family.base, family.head),)
    ]
    if family.text_config is not None:
        return plain
    return plain + [replace(layout, base_missing=True) for layout in plain]


def linear_pattern(name: str) -> str:
    """A name with `*` for each number that is a part of it."""
    return ".".join("*" if piece.isdecimal() else piece for piece in name.split("."))


def _with_blocks(naming: Naming, stored: Iterable[str]) -> Naming:
    """With the kind of each block and its experts, going by these tensors of the checkpoint."""
    present: dict[int, set[str]] = defaultdict(set)
    experts = [0] * naming.block_count
    start = f"{naming.family.base}.{naming.family.blocks}."
    for name in map(naming.rename, stored):
        block = naming.block_of(name)
        if block is None or block >= naming.block_count:
            continue
        inside = linear_pattern(naming.module(name)).removeprefix(f"{start}*.")
        while inside:
            present[block].add(inside)
            inside = inside.rpartition(".")[0]
        if (match := naming._expert(name)) is not None:
            experts[block] = max(experts[block], int(match[3]) + 1)
    kinds = tuple(_kind(naming.family, present[block]) for block in range(naming.block_count))
    lacking: dict[int, frozenset[str]] = {}
    for block, kind in enumerate(kinds):
        absent = _linears(naming.family, kind) - present[block]
        lacking[kind] = lacking.get(kind, absent) & absent
    return replace(
        naming,
        kinds=kinds,
        experts=tuple(experts) if naming._pools else (),
        lacking=frozenset().union(*lacking.values()),
    )


def _linears(family: FamilySpec, kind: int) -> frozenset[str]:
    return frozenset(path for some in family.kinds[kind] for inlet in some for path in inlet)


def _kind(family: FamilySpec, present: set[str]) -> int:
    """The kind of block whose linears these are: the largest that is there, or nearly so."""

    def fit(kind: int) -> tuple[int, int]:
        linears = _linears(family, kind)
        return len(linears & present), -len(linears - present)

    return max(range(len(family.kinds)), key=fit)


def _check_unique(stored: Iterable[str], naming: Naming) -> None:
    """RequestError where two tensors would have the same name in our files."""
    known: dict[str, str] = {}
    for name in sorted(stored):
        ours = naming.rename(name)
        if ours in known:
            raise RequestError(f"the weights hold {ours} twice: as {known[ours]} and as {name}")
        known[ours] = name


def _under(name: str, moves: Iterable[tuple[str, str]]) -> str:
    """`name` with the first of these modules that it is, or is in, called otherwise."""
    for old, new in moves:
        if name == old or name.startswith(old + "."):
            return new + name[len(old) :]
    return name


def _moved(name: str, moves: Iterable[_Move]) -> str:
    """The same, for modules with numbers in their paths."""
    for pattern, new in moves:
        if (match := pattern.match(name)) is not None:
            return match.expand(new) + name[match.end() :]
    return name


def _move(old: str, new: str) -> _Move:
    pattern = re.escape(old).replace(r"\*", r"(\d+|\*)")
    places = iter(range(1, old.count("*") + 1))
    target = re.sub(r"\*", lambda _: rf"\{next(places)}", new)
    return re.compile(rf"{pattern}(?=\.|$)"), target
