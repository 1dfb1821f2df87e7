"""What the verbs that write checkpoints say of tensors, from names and shapes alone. No torch."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Iterator

from llmopt.errors import RequestError
from llmopt.model.change import Change
from llmopt.model.contents import Contents, LogicalTensor
from llmopt.specs import FORMATS
from llmopt.specs.families import Naming
from llmopt.specs.naming import linear_pattern

#: what headers call the dtypes of settings and configs
DTYPES = {"float32": "F32", "float16": "F16", "bfloat16": "BF16"}


def kept(tensor: LogicalTensor, why: str, format_id: str | None, source: str | None) -> Change:
    """A tensor that a step to a format leaves alone; `source` is the model's own.

    What is quantized stays so. Blocks of a GGUF type outside linears become plain numbers.
    """
    size, layout = tensor.nbytes, tensor.layout
    if layout is not None and format_id is not None and format_id != source:
        (rows, cols), spec = tensor.shape, FORMATS[format_id]
        scale = FORMATS[source].scale_bytes if source and spec.any_scale else None
        size = layout.bytes((rows, cols), spec, scale)
    blocks = tensor.in_blocks
    return Change(
        name=tensor.name,
        actions=("decoded",) if blocks else ("kept",),
        shape=tensor.shape,
        bytes=4 * math.prod(tensor.shape) if blocks else size,
        layout=layout,
        dtype="F32" if blocks else tensor.dtype,
        why=why,
        settled=tensor.settled,
    )


def as_held(changes: Iterable[Change], contents: Contents, format_id: str) -> Iterator[Change]:
    """The changes, with what the model really holds in the place of what no plan could know.

    `changes` are those of a step that quantizes: only what it leaves alone is not settled.
    """
    for change in changes:
        if change.settled:
            yield change
        elif change.name in contents.tensors:
            tensor = contents.tensors[change.name]
            yield kept(tensor, change.why, format_id, contents.format)
        else:  # the values said that it is the embedding
            yield tied_head(contents)


def has_head(contents: Contents) -> bool:
    """Whether the head has a tensor of its own."""
    return f"{contents.naming.head}.weight" in contents.tensors


def tied_head(contents: Contents) -> Change:
    """The head of a model that shares the embedding's weights, whether or not it has a copy."""
    naming = contents.naming
    head, embedding = f"{naming.head}.weight", f"{naming.embedding}.weight"
    return Change(
        name=head,
        sources=(head if has_head(contents) else embedding,),
        actions=("tied",),
        shape=contents.tensors[embedding].shape,
        bytes=0,
        why=f"shares {embedding}",
    )


def linear_names(naming: Naming, *, head: bool) -> set[str]:
    """The modules that a step may quantize: every block's linears, and the head if asked."""
    names = {
        linear
        for block in range(naming.block_count)
        for inlet in naming.linears(block)
        for linear in inlet
    }
    return names | {naming.head} if head else names


def in_linears(contents: Contents) -> tuple[float, list[str]]:
    """How much of the matrices in blocks is in linears; and the others, the largest first.

    Their names are those inside a block, with `*` for numbers.
    """
    naming, linears = contents.naming, linear_names(contents.naming, head=False)
    known, others = 0, Counter[str]()
    for name, tensor in contents.tensors.items():
        if naming.block_of(name) is None or naming.is_mtp(name) or len(tensor.shape) < 2:
            continue
        if name.removesuffix(".weight") in linears:
            known += math.prod(tensor.shape)
        else:
            inside = linear_pattern(name).removeprefix(f"{naming.blocks}.*.")
            others[inside] += math.prod(tensor.shape)
    size = known + others.total()
    return known / size if size else 0.0, [name for name, _ in others.most_common()]


def unquantized(changes: Iterable[Change], naming: Naming) -> list[str]:
    """The linears that stay as they are, as configs have to name them; the head is apart.

    Outside the text model, and in layers that look ahead, every matrix counts as one.
    """
    inside = linear_names(naming, head=False)
    inside |= {name for block in range(naming.block_count) for name in naming.routers(block)}
    found = []
    for change in changes:
        module = change.module
        if change.layout or not change.written or module in (change.name, naming.head):
            continue
        own = module.startswith(f"{naming.base}.") and not naming.is_mtp(change.name)
        if module in inside if own else len(change.shape) == 2:
            found.append(module)
    return found


def linear_shape(contents: Contents, tensor: LogicalTensor) -> tuple[int, int]:
    """(outputs, inputs) of a linear's weight, whatever way the checkpoint stores it."""
    if len(tensor.shape) != 2:
        raise RequestError(f"{tensor.name} is no matrix: its shape is {list(tensor.shape)}")
    rows, cols = tensor.shape
    module = tensor.name.removesuffix(".weight")
    transposed = contents.naming.transposed(module) and tensor.layout is None
    return (cols, rows) if transposed else (rows, cols)


def kept_because(naming: Naming, name: str) -> str:
    """Why a tensor that is no linear in a block stays as it is."""
    if naming.is_mtp(name):
        return "multi-token prediction layer, not part of the model that runs"
    block = naming.block_of(name)
    if block is not None and name.removesuffix(".weight") in naming.routers(block):
        return "routes tokens to experts"
    inside = name.startswith((f"{naming.base}.", f"{naming.head}."))
    return "not a linear" if inside else "not part of the text model"
