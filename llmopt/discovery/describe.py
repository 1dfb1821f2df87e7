"""A model that transformers builds -> where its blocks and linears are, and which share an input.

Nothing here knows a model's class: one forward of a tiny model with random weights shows which
weights are multiplied with what, one for each group of linears shows what depends on it, and what
save_pretrained writes shows what checkpoints call all that.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from itertools import groupby
from typing import Any

import torch
from torch import Tensor, nn

from llmopt.blockwalk.products import Product, Products, block_under_way
from llmopt.discovery.experts import usual_form
from llmopt.discovery.folds import Prober, inputs_of
from llmopt.discovery.layers import blocks_of
from llmopt.discovery.names import apply_moves, stored_names
from llmopt.discovery.reader import BlockReader, Inlet
from llmopt.discovery.running import Look, logits_of
from llmopt.errors import RequestError
from llmopt.specs.family import Fold


@dataclass(frozen=True)
class Structure:
    """Where the parts of a model are."""

    base: str
    blocks: str
    embedding: str
    head: str


@dataclass
class KindFound:
    """Blocks of one make: their linears, in the order of computation."""

    rounds: list[list[Inlet]] = field(default_factory=list)
    routers: list[str] = field(default_factory=list)
    folds: list[Fold] = field(default_factory=list)

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
    blocks, _ = blocks_of(model)
    base = _common(blocks, paths[embedding])
    inside = f"{base}." if base else ""
    return Structure(
        base=base,
        blocks=blocks.removeprefix(inside),
        embedding=paths[embedding].removeprefix(inside),
        head=paths[head],
    )


def _common(one: str, other: str) -> str:
    """The innermost module that both paths are in."""
    shared = []
    for a, b in zip(one.split("."), other.split("."), strict=False):
        if a != b:
            break
        shared.append(a)
    return ".".join(shared)


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
    kinds: list[KindFound] = []
    for index, block in enumerate(blocks):
        inside = f"{path}.{index}."
        reader = BlockReader(model, block, inside, names.stacks, counts)
        inlets, kind = reader.inlets(by_block[index]), KindFound()
        kind.routers = sorted(reader.routers)
        linears = {path for inlet in inlets for path in inlet}
        if not any(linears == known.linears for known in kinds):
            look = partial(_in_block, model, blocks, tokens, index)
            kind.rounds = _rounds(inlets, reader, look)
            inputs = inputs_of(by_block[index], reader.reading)
            kind.folds = Prober(model, block, tokens, inputs, reader.views, inlets).folds()
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
        "folds": [[_as_json(fold) for fold in kind.folds] for kind in kinds],
        "routers": sorted({router for kind in kinds for router in kind.routers}),
        "experts": usual and asdict(usual),
        "stacks": list(stacks.values()),
        "conv1d": any(p.transposed and p.index is None for _, p in seen),
        "renamed": renamed,
        "stored_as": [] if (base, head) == (found.base, found.head) else [[base, head]],
        "tables": _tables(model, found, tokens),
        "joined": [[inner, parts] for inner, parts in names.joined_in(path).items()],
    }


def _as_json(fold: Fold) -> dict[str, object]:
    return {key: value for key, value in asdict(fold).items() if value is not None}


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

    def note(path: str) -> Look:
        def hook(_: nn.Module, given: tuple[object, ...], output: Tensor) -> None:
            x = given[0] if given else None
            if not isinstance(x, Tensor) or x.shape != tokens.shape:
                return
            # tables of positions may be given tokens as well
            if torch.equal(x, tokens) and _by_token(tokens, output):
                seen.append(path)

        return hook

    looks: dict[nn.Module, Look] = {
        part: note(path)
        for path, part in decoder.named_modules()
        if isinstance(part, nn.Embedding) and not path.startswith(f"{structure.blocks}.")
    }
    logits_of(model, tokens, looks)
    return sorted({path for path in seen if path != structure.embedding})


def _by_token(tokens: Tensor, output: Tensor) -> bool:
    """Whether the same token has the same row wherever it stands."""
    if output.shape[: tokens.ndim] != tokens.shape:
        return False
    rows = output.reshape(tokens.numel(), -1)
    places = [torch.where(tokens.flatten() == token)[0] for token in torch.unique(tokens)]
    return all(bool((rows[where] == rows[where[0]]).all()) for where in places)


def _final_norm(model: Any, structure: Structure, tokens: Tensor) -> tuple[str, float]:
    """The norm after the last block, "" where there is none, and what is added to its weight."""
    decoder = model.get_submodule(structure.base)
    last: list[tuple[str, Tensor, Tensor, Tensor]] = []

    def note(path: str, part: nn.Module) -> Look:
        def hook(_: nn.Module, given: tuple[Tensor, ...], output: Tensor) -> None:
            last[:] = [(path, part.weight, given[0], output)]  # type: ignore[list-item]

        return hook

    looks = {
        part: note(path, part)
        for path, part in decoder.named_children()
        if getattr(getattr(part, "weight", None), "ndim", 0) == 1
    }
    logits_of(model, tokens, looks)
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
        block_under_way(blocks) as where,
        Products(parameters, lambda product: seen.append((where(), product))),
    ):
        logits_of(model, tokens)
    return seen


def _in_block(model: Any, blocks: Sequence[nn.Module], tokens: Tensor, index: int) -> list[Product]:
    """The products in one block."""
    return [product for where, product in _watched(model, blocks, tokens) if where == index]


def _rounds(
    inlets: Sequence[Inlet], reader: BlockReader, look: Callable[[], Sequence[Product]]
) -> list[list[Inlet]]:
    """The inlets of a block, those together that do not depend on each other; `look` runs it."""
    before = inputs_of(look(), reader.names)
    rounds: list[list[Inlet]] = []
    changed: list[set[int]] = []
    for inlet in inlets:
        with _shaken(reader, inlet):
            after = inputs_of(look(), reader.names)
        first = enumerate(each[0] for each in inlets)
        changed.append({place for place, n in first if not _same(before[n], after.get(n))})
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


class _shaken:  # noqa: N801
    """Other values for the weights of an inlet, for as long as the context lasts."""

    def __init__(self, reader: BlockReader, inlet: Inlet) -> None:
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
