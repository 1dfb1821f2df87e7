"""What describes a decoder family: where blocks and linears are, and which share an input.

Module paths are those of the text model that transformers builds for the family
(AutoModelForCausalLM); `Naming` maps them to the names in a checkpoint.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from llmopt.errors import RequestError

#: linears that share one input, as paths inside a block, in the order of computation
Inlets = tuple[tuple[str, ...], ...]

#: what only a layer that predicts further tokens (DeepSeek's, GLM's) has beside a block's tensors
_AHEAD_IN_BLOCK = re.compile(r"\.(eh_proj|enorm|hnorm|shared_head)\.")
#: where other models (Qwen3-Next, MiMo) keep such layers
_AHEAD_ELSEWHERE = re.compile(r"(^|\.)mtp(_layers)?\.")


@dataclass(frozen=True, kw_only=True)
class ExpertsSpec:
    """Small feed-forward networks of a block, a few of which a router picks for each token.

    `owner` is the module of a block that holds them and the `routers`; blocks that have it have
    none of the family's inlets below `owner`. The rest are paths below it: `path` is where the
    experts are, `gate`, `up` and `down` are the linears of each, `shared` the networks that every
    token passes, as the inlets of their first and of their last linears. `routers` are linears
    that see the same input and stay as they are.

    Checkpoints that hold all experts in one tensor call it `fused_gate_up` [experts, 2 * inner,
    width], an expert's gate above its up, and `fused_down` [experts, width, inner].
    """

    owner: str = "mlp"
    path: str = "experts"
    gate: str = "gate_proj"
    up: str = "up_proj"
    down: str = "down_proj"
    routers: tuple[str, ...] = ("gate",)
    shared: tuple[Inlets, Inlets] = ((), ())
    fused_gate_up: str = "gate_up_proj"
    fused_down: str = "down_proj"

    def rounds(self, count: int) -> tuple[Inlets, Inlets]:
        """The inlets of `count` experts and of what is shared: all first linears, all last."""
        experts = [f"{self.path}.{index}" for index in range(count)]
        first = tuple((f"{expert}.{self.gate}", f"{expert}.{self.up}") for expert in experts)
        last = tuple((f"{expert}.{self.down}",) for expert in experts)
        return self._owned(self.shared[0] + first), self._owned(self.shared[1] + last)

    def _owned(self, inlets: Inlets) -> Inlets:
        return tuple(tuple(f"{self.owner}.{path}" for path in inlet) for inlet in inlets)


@dataclass(frozen=True, kw_only=True)
class FamilySpec:
    """One decoder architecture.

    `base` is the prefix of all modules but the head; `blocks`, `embedding` and `final_norm` are
    below it. `conv1d`: linears are stored transposed, [in, out]. `norm_gain_offset`: a norm scales
    by this plus its weight. `attention` is the implementation that computes the family exactly.
    `text_config`: the key under which a multimodal config holds the text model's.
    `stored_as`: the names that checkpoints give to (base, head) where they differ from these.
    `renamed`: modules of a block, and what checkpoints call them.
    `fused`: what engines make one module of, and call so, where a module has all of these linears;
    all of a block's experts are one, too, called as what holds them.
    """

    id: str
    base: str
    blocks: str
    embedding: str
    final_norm: str
    inlets: Inlets
    head: str = "lm_head"
    conv1d: bool = False
    norm_gain_offset: float = 0.0
    attention: str = "sdpa"
    text_config: str | None = None
    stored_as: tuple[tuple[str, str], ...] = ()
    renamed: tuple[tuple[str, str], ...] = ()
    experts: ExpertsSpec | None = None
    fused: tuple[tuple[str, tuple[str, ...]], ...] = ()

    def language_config(self, config: Mapping[str, Any]) -> dict[str, Any]:
        """The part of config.json that describes the text model."""
        if self.text_config is None:
            return dict(config)
        part = config.get(self.text_config)
        if not isinstance(part, dict):
            raise RequestError(f"config.json of a {self.id} model has no {self.text_config}")
        if (found := part.get("model_type", f"{self.id}_text")) != f"{self.id}_text":
            raise RequestError(f"{self.text_config} of a {self.id} model has the type {found!r}")
        return {**part, "model_type": f"{self.id}_text"}

    def naming(self, stored: Iterable[str]) -> Naming:
        """How a checkpoint with these tensor names calls the family's modules."""
        names = set(stored)
        layouts = [layout for layout in self.layouts() if layout.block_indices(names)]
        if not layouts:
            raise RequestError(
                f"the weights have no tensor named {self.base}.{self.blocks}.0.*, "
                f"which a {self.id} model has"
            )
        with_head = (each for each in layouts if any(n.startswith(each.head + ".") for n in names))
        layout = next(with_head, layouts[0])
        blocks = layout.block_indices(names)
        blocks -= layout.block_indices(name for name in names if _AHEAD_IN_BLOCK.search(name))
        if blocks != set(range(len(blocks))):
            lost = min(set(range(max(blocks))) - blocks)
            raise RequestError(f"the weights have no tensor of block {lost}")
        layout = replace(layout, block_count=len(blocks))
        _check_unique(names, layout)
        return replace(layout, experts=layout.count_experts(names))

    def rounds(self, experts: int = 0) -> tuple[Inlets, ...]:
        """The inlets of a block with this many experts.

        Those in one round do not depend on each other, and each round depends on those before it.
        """
        if self.experts is None or not experts:
            return tuple((inlet,) for inlet in self.inlets)
        below = f"{self.experts.owner}."
        others = (inlet for inlet in self.inlets if not inlet[0].startswith(below))
        return (*((inlet,) for inlet in others), *self.experts.rounds(experts))

    def layouts(self) -> list[Naming]:
        """The ways in which checkpoints of the family name their tensors, most usual first."""
        plain = [
            Naming(family=self, base=base, head=head)
            for base, head in self.stored_as or ((self.base, self.head),)
        ]
        if self.text_config is not None:
            return plain
        return plain + [replace(layout, base_missing=True) for layout in plain]


@dataclass(frozen=True, kw_only=True)
class Naming:
    """The names of one checkpoint.

    Checkpoints saved from a bare base model lack its prefix (gpt2's `h.0` for `transformer.h.0`);
    `rename` puts it back, because the tools that load quantized files expect it. All other
    methods give names as they are after that. `experts` says how many experts each block has; it
    is empty where the family has none.
    """

    family: FamilySpec
    base: str
    head: str
    base_missing: bool = False
    block_count: int = 0
    experts: tuple[int, ...] = ()

    def rename(self, stored: str) -> str:
        """The name in our files of a tensor of the checkpoint."""
        if self.base_missing and not stored.startswith(self.head + "."):
            stored = f"{self.base}.{stored}"
        return _moved(stored, self._moves())

    def name(self, module: str) -> str:
        """The name in our files of a module or tensor of the text model."""
        return _moved(_moved(module, self.bases()), self._moves())

    def module(self, name: str) -> str:
        """The module or tensor of the text model that has this name in our files."""
        moves = ((new, old) for old, new in self._moves())
        return _moved(_moved(name, moves), ((new, old) for old, new in self.bases()))

    def aliases(self, name: str) -> tuple[str, ...]:
        """The names that a module has in transformers and in other checkpoints of the family."""
        if name != self.head and not name.startswith((f"{self.base}.", f"{self.head}.")):
            if self.family.text_config is None:
                return (name,)
            bare = name.removeprefix("model.")  # another part of a multimodal model
            return (name, f"model.{bare}" if name == bare else bare)
        path, found = self.module(name), [name]
        for each in self.family.layouts():
            if not each.base_missing:
                layout = replace(each, block_count=self.block_count)
                found += [layout.name(path), _moved(path, layout.bases())]
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
            for name, parts in self.family.fused:
                if present >= set(parts):
                    groups[f"{parent}.{name}"] = tuple(f"{parent}.{part}" for part in parts)
        return groups

    def _experts_of(self, linear: str) -> str | None:
        """What holds the expert that has this linear, wherever in the checkpoint; else None."""
        spec = self.family.experts
        if spec is None:
            return None
        owner = dict(self.family.renamed).get(spec.owner, spec.owner)
        match = re.match(rf"(.+\.{re.escape(owner)}\.{re.escape(spec.path)})\.\d+\.", linear)
        return match[1] if match else None

    def bases(self) -> tuple[tuple[str, str], tuple[str, str]]:
        """(in the text model, in our files) of all but the head, and of the head."""
        return ((self.family.base, self.base), (self.family.head, self.head))

    def _moves(self) -> Iterator[tuple[str, str]]:
        """Where modules of each block are in the model, and what we call them."""
        for old, new in self.family.renamed:
            for block in range(self.block_count):
                yield f"{self.blocks}.{block}.{old}", f"{self.blocks}.{block}.{new}"

    @property
    def blocks(self) -> str:
        """What the names of all tensors in blocks begin with; `.<index>.` follows."""
        return f"{self.base}.{self.family.blocks}"

    @property
    def embedding(self) -> str:
        """The token embedding's module."""
        return f"{self.base}.{self.family.embedding}"

    def linears(self, block: int) -> Inlets:
        """The names of a block's linears, those that share an input together, in order."""
        return tuple(inlet for some in self.rounds(block) for inlet in some)

    def rounds(self, block: int) -> tuple[Inlets, ...]:
        """The same, in rounds: see `FamilySpec.rounds`."""
        module = f"{self.family.base}.{self.family.blocks}.{block}"
        return tuple(
            tuple(tuple(self.name(f"{module}.{path}") for path in inlet) for inlet in some)
            for some in self.family.rounds(self.experts[block] if self.experts else 0)
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
            yield some

    def routers(self, block: int) -> tuple[str, ...]:
        """The names of what sends a block's tokens to its experts."""
        spec = self.family.experts
        if spec is None or not self.experts[block]:
            return ()
        owner = f"{self.family.base}.{self.family.blocks}.{block}.{spec.owner}"
        return tuple(self.name(f"{owner}.{router}") for router in spec.routers)

    def pool_of(self, linear: str) -> str | None:
        """The name that an expert's linear has in common with the other experts', else None."""
        match = self._expert(linear)
        return f"{match[1]}.*.{match[4]}" if match else None

    def count_experts(self, stored: Iterable[str]) -> tuple[int, ...]:
        """How many experts each block has, going by these tensors of the checkpoint."""
        if self.family.experts is None:
            return ()
        counts = [0] * self.block_count
        for match in (self._expert(self.rename(name)) for name in stored):
            if match and int(match[2]) < self.block_count:
                counts[int(match[2])] = max(counts[int(match[2])], int(match[3]) + 1)
        return tuple(counts)

    def _expert(self, name: str) -> re.Match[str] | None:
        """(all experts of the block, block, expert, what is inside) of an expert's tensor."""
        spec = self.family.experts
        if spec is None:
            return None
        owner = dict(self.family.renamed).get(spec.owner, spec.owner)
        inside = rf"{re.escape(owner)}\.{re.escape(spec.path)}"
        return re.match(rf"({re.escape(self.blocks)}\.(\d+)\.{inside})\.(\d+)\.(.+)", name)

    def is_mtp(self, name: str) -> bool:
        """Whether a tensor is of multi-token prediction: a layer beside the model, for drafting."""
        block = self.block_of(name)
        if block is not None:
            return block >= self.block_count
        return _AHEAD_ELSEWHERE.search(name) is not None

    def block_of(self, name: str) -> int | None:
        """The block that a tensor belongs to; None outside the blocks."""
        match = re.match(re.escape(self.blocks) + r"\.(\d+)\.", name)
        return int(match[1]) if match else None

    def block_indices(self, stored: Iterable[str]) -> set[int]:
        """The blocks that these tensors of the checkpoint belong to."""
        indices = (self.block_of(self.rename(name)) for name in stored)
        return {index for index in indices if index is not None}


def _check_unique(stored: Iterable[str], naming: Naming) -> None:
    """RequestError where two tensors would have the same name in our files."""
    known: dict[str, str] = {}
    for name in sorted(stored):
        ours = naming.rename(name)
        if ours in known:
            raise RequestError(f"the weights hold {ours} twice: as {known[ours]} and as {name}")
        known[ours] = name


def _moved(name: str, moves: Iterable[tuple[str, str]]) -> str:
    """`name` with the first of these modules that it is, or is in, called otherwise."""
    for old, new in moves:
        if name == old or name.startswith(old + "."):
            return new + name[len(old) :]
    return name
