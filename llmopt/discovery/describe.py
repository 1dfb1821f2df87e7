"""A model that transformers builds -> where its blocks and linears are, and which share an input.

Nothing here knows a model's class: one forward of a tiny model with random weights shows which
weights are multiplied with what, one for each group of linears shows what depends on it, and what
save_pretrained writes shows what checkpoints call all that.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from itertools import groupby
from typing import Any

import torch
from torch import Tensor, nn

from llmopt.blockwalk.products import Product, Products, block_under_way
from llmopt.discovery.experts import usual_form
from llmopt.discovery.names import Stack, apply_moves, starred, stored_names
from llmopt.errors import RequestError

#: linears of a block that share an input, as paths in it; `*` stands for an expert's number
Inlet = tuple[str, ...]


@dataclass(frozen=True)
class Structure:
    """Where the parts of a model are."""

    base: str
    blocks: str
    embedding: str
    head: str


@dataclass
class Kind:
    """Blocks of one make. inlets: in the order of computation. others: matrices in no linear."""

    rounds: list[list[Inlet]] = field(default_factory=list)
    routers: list[str] = field(default_factory=list)
    others: list[str] = field(default_factory=list)
    share: float = 0.0

    @property
    def linears(self) -> set[str]:
        """All of its linears."""
        return {path for some in self.rounds for inlet in some for path in inlet}


def structure_of(model: Any) -> Structure:
    """RequestError where the model has no embedding, head or list of blocks."""
    paths = {part: path for path, part in model.named_modules()}
    embedding, head = model.get_input_embeddings(), model.get_output_embeddings()
    if not isinstance(embedding, nn.Embedding) or embedding not in paths:
        raise RequestError("tokens do not go through one embedding")
    if not isinstance(head, nn.Linear) or head not in paths:
        raise RequestError("logits do not come out of one linear")
    base, blocks = _blocks(model, paths[embedding])
    inside = f"{base}." if base else ""
    return Structure(
        base=base,
        blocks=blocks.removeprefix(inside),
        embedding=paths[embedding].removeprefix(inside),
        head=paths[head],
    )


def _blocks(model: nn.Module, embedding: str) -> tuple[str, str]:
    """The module that holds the embedding and the blocks, and the blocks: the longest list."""
    lists = [
        (len(part), sum(p.numel() for p in part.parameters()), path)
        for path, part in model.named_modules()
        if isinstance(part, nn.ModuleList)
        and len(part)
        and all(next(each.parameters(), None) is not None for each in part)
        and not re.search(r"vision|audio|image|speech", path)
    ]
    if not lists:
        raise RequestError("it has no list of blocks")
    blocks = max(lists)[-1]
    shared = []
    for one, other in zip(blocks.split("."), embedding.split("."), strict=False):
        if one != other:
            break
        shared.append(one)
    return ".".join(shared), blocks


def described(model: Any, tokens: Tensor) -> dict[str, Any]:
    """What specs.families holds of a type, as JSON; RequestError where it cannot be walked.

    model: tiny, its weights random and all different. tokens: int64 [batch, length].
    """
    found = structure_of(model)
    path = f"{found.base}.{found.blocks}" if found.base else found.blocks
    blocks = list(model.get_submodule(path))
    seen = _watched(model, blocks, tokens)
    names = stored_names(
        copy.deepcopy(model), {p.path: p.transposed for _, p in seen if p.index is not None}
    )
    by_block = [[p for where, p in seen if where == index] for index in range(len(blocks))]
    counts = {s.count for s in names.stacks if s.path.startswith(path + ".")}
    kinds: list[Kind] = []
    for index, block in enumerate(blocks):
        inside = f"{path}.{index}."
        reader = _BlockReader(model, block, inside, names.stacks, counts)
        inlets, kind = reader.inlets(by_block[index]), Kind()
        kind.routers = sorted(reader.routers)
        linears = {path for inlet in inlets for path in inlet}
        if not any(linears == known.linears for known in kinds):
            kind.rounds = _rounds(model, blocks, index, inlets, tokens, reader)
            kind.others, kind.share = reader.left(inlets)
            kinds.append(kind)
    norm, offset = _final_norm(model, found, tokens)
    usual = usual_form(model, blocks, path, names.stacks, tokens)
    stacks = {} if usual else {s.inside(path): s.as_json(path) for s in names.stacks}
    base, head, renamed = _with_base(found, names.renamed())
    return {
        "base": found.base,
        "blocks": found.blocks,
        "embedding": found.embedding,
        "head": found.head,
        "final_norm": norm,
        "norm_gain_offset": offset,
        "kinds": [kind.rounds for kind in kinds],
        "routers": sorted({router for kind in kinds for router in kind.routers}),
        "experts": usual and asdict(usual),
        "stacks": list(stacks.values()),
        "conv1d": any(p.transposed and p.index is None for _, p in seen),
        "renamed": renamed,
        "stored_as": [] if (base, head) == (found.base, found.head) else [[base, head]],
        "tables": _tables(model, found, tokens),
        "joined": [[inner, parts] for inner, parts in names.joined_in(path).items()],
        "unexplained": sorted({starred(name) for name in names.unexplained}),
        "others": sorted({starred(each) for kind in kinds for each in kind.others}),
    }


def _with_base(
    found: Structure, renamed: Sequence[tuple[str, str]]
) -> tuple[str, str, list[tuple[str, str]]]:
    """What checkpoints call the base and the head, and what is called otherwise inside of them."""
    base, head = (apply_moves(path, renamed) for path in (found.base, found.head))
    inside = []
    for old, new in renamed:
        if f"{found.base}.".startswith(f"{old}.") or f"{found.head}.".startswith(f"{old}."):
            continue
        if old.startswith(f"{found.base}.") and new.startswith(f"{base}."):
            new = found.base + new[len(base) :]
        inside.append((old, new))
    return base, head, inside


def _tables(model: Any, structure: Structure, tokens: Tensor) -> list[str]:
    """Embeddings of the decoder, other than the first, that tokens are looked up in."""
    seen: list[str] = []
    decoder = model.get_submodule(structure.base)

    def note(path: str) -> Callable[..., None]:
        def hook(_: nn.Module, given: tuple[object, ...]) -> None:
            x = given[0] if given else None
            if isinstance(x, Tensor) and x.shape == tokens.shape and torch.equal(x, tokens):
                seen.append(path)

        return hook

    hooks = [
        part.register_forward_pre_hook(note(path))
        for path, part in decoder.named_modules()
        if isinstance(part, nn.Embedding) and not path.startswith(f"{structure.blocks}.")
    ]
    with torch.no_grad():
        model(input_ids=tokens, use_cache=False)
    for hook in hooks:
        hook.remove()
    return sorted({path for path in seen if path != structure.embedding})


def merged(found: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """What runs of a type with several configs agree on.

    Blocks with the same linears are one kind. Linears share an input if they do in all runs, and
    where runs differ each inlet waits for all before it, in the order of the run that had most.
    """
    kinds: dict[frozenset[str], list[list[list[Inlet]]]] = {}
    for each in found:
        for rounds in each["kinds"]:
            linears = frozenset(path for some in rounds for inlet in some for path in inlet)
            kinds.setdefault(linears, []).append(rounds)
    result = dict(found[0])
    result["kinds"] = [_agreed(runs) for runs in kinds.values()]
    for key in ("routers", "others"):
        result[key] = sorted({path for each in found for path in each[key]})
    result["renamed"] = [list(move) for move in {tuple(m): 0 for f in found for m in f["renamed"]}]
    result["renamed"].sort(key=lambda move: (-move[0].count("."), move))
    return result


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


def _final_norm(model: Any, structure: Structure, tokens: Tensor) -> tuple[str, float]:
    """The norm after the last block, "" where there is none, and what is added to its weight."""
    decoder = model.get_submodule(structure.base)
    last: list[tuple[str, Tensor, Tensor, Tensor]] = []

    def note(path: str, part: nn.Module) -> Callable[..., None]:
        def hook(_: nn.Module, given: tuple[Tensor, ...], output: Tensor) -> None:
            last[:] = [(path, part.weight, given[0], output)]  # type: ignore[list-item]

        return hook

    hooks = [
        part.register_forward_hook(note(path, part))
        for path, part in decoder.named_children()
        if getattr(getattr(part, "weight", None), "ndim", 0) == 1
    ]
    with torch.no_grad():
        model(input_ids=tokens, use_cache=False)
    for hook in hooks:
        hook.remove()
    if not last:
        return "", 0.0
    path, weight, x, output = last[0]
    bias = getattr(decoder.get_submodule(path), "bias", None)
    y = (output if bias is None else output - bias).reshape(-1, len(weight)).double()
    ratio = (y / x.reshape(-1, len(weight)).double())[0]
    # up to one factor, and for norms that subtract a mean not even that: then it is no 1 + w
    plain, shifted = (ratio / (weight.double() + by) for by in (0, 1))
    return path, float(shifted.std() < 1e-3 * shifted.mean().abs() and plain.std() > shifted.std())


def _watched(
    model: Any, blocks: Sequence[nn.Module], tokens: Tensor
) -> list[tuple[int | None, Product]]:
    """The products of one forward, with the block that ran."""
    seen: list[tuple[int | None, Product]] = []
    parameters = dict(model.named_parameters())
    with (
        torch.no_grad(),
        block_under_way(blocks) as where,
        Products(parameters, lambda product: seen.append((where(), product))),
    ):
        model(input_ids=tokens, use_cache=False)
    return seen


class _BlockReader:
    """One block: which of the products in it are linears, and what they are called."""

    def __init__(
        self,
        model: Any,
        block: nn.Module,
        inside: str,
        stacks: Iterable[Stack],
        experts: set[int],
    ) -> None:
        self._model, self._block, self._inside = model, block, inside
        self._stacks = {s.path: s for s in stacks if s.path.startswith(inside)}
        self._experts = experts
        self.routers: set[str] = set()

    def inlets(self, products: Sequence[Product]) -> list[Inlet]:
        """The linears that share an input, in the order of computation."""
        groups: list[tuple[Tensor, list[str]]] = []
        known: set[str] = set()
        for product in products:
            names = [name for name in self.names(product) if name not in known]
            if not names:
                continue
            known.update(names)
            x = product.x.reshape(-1, product.x.shape[-1])
            same = (g for g in groups if g[0].shape == x.shape and torch.equal(g[0], x))
            if (group := next(same, None)) is not None:
                group[1].extend(names)
            else:
                groups.append((x, names))
        return [tuple(names) for _, names in groups]

    def names(self, product: Product) -> tuple[str, ...]:
        """The linears that a product is of, in this block; none for a router or what is none."""
        if not product.path.startswith(self._inside):
            return ()
        if product.path in self._stacks:
            stack = self._stacks[product.path]
            inner = product.path.removeprefix(self._inside)
            return tuple(stack.linears(inner))
        if product.index is not None or not product.path.endswith(".weight"):
            return ()
        path = product.path.removesuffix(".weight")
        part = self._model.get_submodule(path)
        inner = path.removeprefix(self._inside)
        rows = part.weight.shape[1 if product.transposed else 0]
        if rows == 1 or (self._stacks and rows in self._experts):
            self.routers.add(inner)
            return ()
        plain = isinstance(part, nn.Linear) or type(part).__name__ == "Conv1D"
        return (inner,) if plain else ()

    def parameters(self, inlet: Inlet) -> Iterator[Tensor]:
        """The parameters that hold these linears."""
        for name, p in self._block.named_parameters():
            stack = self._stacks.get(self._inside + name)
            inner = stack.linears(name) if stack else [name.removesuffix(".weight")]
            if set(inner) & set(inlet):
                yield p

    def left(self, inlets: Sequence[Inlet]) -> tuple[list[str], float]:
        """Matrices that are in no linear, and the linears' share of all that are."""
        linears = {path for inlet in inlets for path in inlet}
        all_, known, others = 0, 0, []
        for name, p in self._block.named_parameters():
            if p.ndim < 2:
                continue
            all_ += p.numel()
            stack = self._stacks.get(self._inside + name)
            inner = stack.linears(name) if stack else [name.removesuffix(".weight")]
            if linears.issuperset(inner):
                known += p.numel()
            else:
                others.append(name)
        return others, known / all_ if all_ else 0.0


def _rounds(
    model: Any,
    blocks: Sequence[nn.Module],
    index: int,
    inlets: Sequence[Inlet],
    tokens: Tensor,
    reader: _BlockReader,
) -> list[list[Inlet]]:
    """The inlets of a block, those together that do not depend on each other."""
    before = _inputs(model, blocks, index, inlets, tokens, reader)
    rounds: list[list[Inlet]] = []
    changed: list[set[int]] = []
    for inlet in inlets:
        with _shaken(reader, inlet):
            after = _inputs(model, blocks, index, inlets, tokens, reader)
        changed.append({i for i in before if not _same(before[i], after.get(i))})
    level = [0] * len(inlets)
    for place in range(len(inlets)):
        after_ = [level[each] + 1 for each in range(place) if place in changed[each]]
        level[place] = max(after_, default=0)
    for _, group in groupby(range(len(inlets)), key=lambda place: inlets[place][0].split(".")[0]):
        members = list(group)
        for depth in sorted({level[place] for place in members}):
            rounds += [[inlets[place] for place in members if level[place] == depth]]
    return rounds


def _same(one: list[Tensor], other: list[Tensor] | None) -> bool:
    return other is not None and len(one) == len(other) and all(map(torch.equal, one, other))


def _inputs(
    model: Any,
    blocks: Sequence[nn.Module],
    index: int,
    inlets: Sequence[Inlet],
    tokens: Tensor,
    reader: _BlockReader,
) -> dict[int, list[Tensor]]:
    """What flows into each inlet of a block."""
    place = {name: number for number, inlet in enumerate(inlets) for name in inlet[:1]}
    found: dict[int, list[Tensor]] = {}
    for where, product in _watched(model, blocks, tokens):
        for name in reader.names(product) if where == index else ():
            if name in place:
                found.setdefault(place[name], []).append(product.x)
    return found


class _shaken:  # noqa: N801
    """Other values for the weights of an inlet, for as long as the context lasts."""

    def __init__(self, reader: _BlockReader, inlet: Inlet) -> None:
        self._parameters = list(reader.parameters(inlet))
        self._kept: list[Tensor] = []

    def __enter__(self) -> None:
        self._kept = [p.detach().clone() for p in self._parameters]
        with torch.no_grad():
            for p in self._parameters:
                p.mul_(1.5)

    def __exit__(self, *_: object) -> None:
        with torch.no_grad():
            for p, kept in zip(self._parameters, self._kept, strict=True):
                p.copy_(kept)
