"""What the verbs that write checkpoints say of tensors, from names and shapes alone. No torch."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import replace

from llmopt.errors import RequestError
from llmopt.formats.config import config_of
from llmopt.formats.engine_names import EngineNames
from llmopt.model.change import TensorFate
from llmopt.model.contents import Contents, LogicalTensor
from llmopt.recipe import Source
from llmopt.recipe.source import Key
from llmopt.specs import CHECKPOINT, FORMATS
from llmopt.specs.families import Naming
from llmopt.specs.ggml import GGML_TYPES


def kept(tensor: LogicalTensor, why: str, format_id: str | None, source: str | None) -> TensorFate:
    """The fate of a tensor that a step to a format leaves alone; `source` is the model's own.

    What is quantized stays so. Blocks of a GGUF type outside linears become plain numbers.
    """
    size, layout = tensor.nbytes, tensor.layout
    if layout is not None and format_id is not None and format_id != source:
        (rows, cols), spec = tensor.shape, FORMATS[format_id]
        scale = FORMATS[source].scale_bytes if source and spec.any_scale else None
        size = layout.bytes((rows, cols), spec, scale)
    ggml = GGML_TYPES.get(tensor.dtype)
    blocks = layout is None and ggml is not None and ggml.block > 1
    size = 4 * math.prod(tensor.shape) if blocks else size
    return TensorFate(
        tensor.name, tensor.shape, tensor.nbytes, size, None, why, decoded=blocks, held=layout
    )


def contents_after(contents: Contents, fates: Iterable[TensorFate], format_id: str) -> Contents:
    """What a model will hold once these are the fates of its tensors."""
    tensors = {}
    for fate in fates:
        present = contents.tensors.get(fate.name)
        if fate.quantize is None and present is not None:
            dtype = "F32" if fate.decoded else present.dtype
            tensors[fate.name] = replace(present, nbytes=fate.bytes, dtype=dtype)
        elif fate.quantize is not None:
            layout = fate.quantize
            tensors[fate.name] = LogicalTensor(fate.name, fate.shape, fate.bytes, layout)
    return replace(contents, tensors=tensors, format=format_id, kind=CHECKPOINT)


def linear_names(naming: Naming, *, head: bool) -> set[str]:
    """The modules that a step may quantize: every block's linears, and the head if asked."""
    names = {
        linear
        for block in range(naming.block_count)
        for inlet in naming.linears(block)
        for linear in inlet
    }
    return names | {naming.head} if head else names


def unquantized(fates: Iterable[TensorFate], naming: Naming) -> list[str]:
    """The linears that stay as they are, as configs have to name them; the head is apart.

    Outside the text model, and in layers that look ahead, every matrix counts as one.
    """
    inside = linear_names(naming, head=False)
    inside |= {name for block in range(naming.block_count) for name in naming.routers(block)}
    found = []
    for fate in fates:
        module = fate.name.removesuffix(".weight")
        if fate.to is not None or module == fate.name or module == naming.head:
            continue
        own = module.startswith(f"{naming.base}.") and not naming.is_mtp(fate.name)
        if module in inside if own else len(fate.shape) == 2:
            found.append(module)
    return found


def linear_shape(contents: Contents, tensor: LogicalTensor) -> tuple[int, int]:
    """(outputs, inputs) of a linear's weight, whatever way the checkpoint stores it."""
    if len(tensor.shape) != 2:
        raise RequestError(f"{tensor.name} is no matrix: its shape is {list(tensor.shape)}")
    rows, cols = tensor.shape
    head = tensor.name == f"{contents.naming.head}.weight"
    transposed = contents.family.conv1d and not head and tensor.layout is None
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


def check_config(
    fates: Iterable[TensorFate], naming: Naming, format_id: str, source: Source, key: Key
) -> None:
    """RecipeError at `key` where a format's config cannot express these settings together."""
    fates = list(fates)
    layers = {
        fate.name.removesuffix(".weight"): layout
        for fate in fates
        if (layout := fate.quantize or fate.held)
    }
    if not layers:
        return
    spec = FORMATS[format_id]
    try:
        config_of(format_id).quantization_config(
            layers,
            version=spec.version,
            unquantized=unquantized(fates, naming),
            head=naming.head,
            names=EngineNames(naming),
        )
    except RequestError as error:
        name, is_setting, value = (error.hint or "").partition(": ")
        hint = source.says((*key[:-1], name), value) if is_setting else error.hint
        raise source.error(error.message, key, hint) from None
