"""Whether a checkpoint's tensors are those that its config asks for, from their headers."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from llmopt.errors import RequestError
from llmopt.formats.checkpoint import Checkpoint
from llmopt.formats.empty_model import empty_model
from llmopt.formats.quantization import parts_of
from llmopt.formats.safetensors import DTYPE_NAMES
from llmopt.formats.stacks import StackPlace, by_parameter, places
from llmopt.specs import nearest
from llmopt.specs.families import Naming

_COMPUTED_BUFFERS = re.compile(r"\brotary_emb\.inv_freq$")  # old checkpoints store them
_WEIGHTS = {torch.float16, torch.bfloat16, torch.float32, torch.float64}


def check_tensors(folder: Path) -> None:
    """RequestError where a model directory lacks a tensor that its config asks for, or has more."""
    checkpoint = Checkpoint.open(folder)
    check_fit(checkpoint, empty_model(checkpoint, torch.float32))


def check_fit(checkpoint: Checkpoint, model: nn.Module) -> tuple[str, ...]:
    """The names of the tensors that belong to other parts than the text model.

    `model` is the checkpoint's empty model. RequestError where a tensor is missing, does not fit
    or has no place in the model, or where the head is said to be tied and is not.
    """
    _check_blocks(checkpoint, model)
    wanted, found = dict(_wanted(checkpoint, model)), _shapes(checkpoint)
    others = [name for name in found if name not in wanted and not _passed(checkpoint, model, name)]
    homeless = [name for name in others if _in_text_model(checkpoint, name)]
    for name, shape in wanted.items():
        if name not in found:
            raise _missing(name, homeless)
        if found[name] != shape:
            raise misfit(name, found[name], shape)
        _check_dtype(checkpoint, name)
    if homeless:
        raise RequestError(
            f"the weights have a tensor {homeless[0]}, which the model has no place for"
        )
    if getattr(model, "_tied_weights_keys", None):  # else the config says so in vain
        _check_head(checkpoint)
    return tuple(sorted(others))


def misfit(name: str, found: tuple[int, ...], expected: tuple[int, ...]) -> RequestError:
    """The error of a tensor that has another shape than the model asks for."""
    return RequestError(
        f"tensor {name} has the shape {list(found)}, but the config asks for {list(expected)}"
    )


def _check_blocks(checkpoint: Checkpoint, model: nn.Module) -> None:
    family = checkpoint.family
    blocks = list(model.get_submodule(f"{family.base}.{family.blocks}").children())
    if len(blocks) != checkpoint.naming.block_count:
        raise RequestError(
            f"config.json says {len(blocks)} blocks, "
            f"the weights have {checkpoint.naming.block_count}"
        )


def _wanted(checkpoint: Checkpoint, model: nn.Module) -> Iterator[tuple[str, tuple[int, ...]]]:
    """The tensors that the model needs, and their shapes: quantized linears as [out, in]."""
    naming, head = checkpoint.naming, f"{checkpoint.naming.head}.weight"
    shares = bool(getattr(model.config, "tie_word_embeddings", False))
    parameters = {path for path, _ in model.named_parameters(remove_duplicate=False)}
    stacks = by_parameter(naming)
    for path, present in model.state_dict(keep_vars=True).items():
        for place in _all_experts(naming, path, present) if path in stacks else ():
            _check_inputs(checkpoint, place.linear)
            rows, cols = place.of(present).shape
            turned = naming.transposed(place.linear) and place.linear not in checkpoint.layers
            yield f"{place.linear}.weight", (cols, rows) if turned else (rows, cols)
        if path in stacks:
            continue
        parts = naming.parts(path)
        if parts and checkpoint.stored.keys() >= set(parts):
            yield from _joined(checkpoint, parts, tuple(present.shape))
            continue
        name = naming.name(path)
        module = name.removesuffix(".weight")
        absent = name not in checkpoint.stored and module not in checkpoint.layers
        if absent and (path not in parameters or (name == head and shares)):
            continue  # a buffer that the config determines, or what the embedding stands for
        shape = tuple(present.shape)
        turned = naming.transposed(module) and module in checkpoint.layers and len(shape) == 2
        yield name, shape[::-1] if turned else shape


def _all_experts(naming: Naming, path: str, parameter: Tensor) -> Iterator[StackPlace]:
    """A parameter's linears, of all experts that the config asks for."""
    block = naming.block_of(naming.name(path))
    if block is not None:
        every = places(naming, block, parameter.shape[0])
        yield from (place for place in every if place.parameter == path)


def _check_inputs(checkpoint: Checkpoint, linear: str) -> None:
    layout = checkpoint.layers.get(linear)
    if layout is not None and layout.activations is not None:
        raise RequestError(
            f"{linear} is part of a tensor of all experts of a {checkpoint.family.id} model, and "
            f"its inputs cannot be rounded to {layout.activations} here"
        )


def _joined(
    checkpoint: Checkpoint, parts: Sequence[str], shape: tuple[int, ...]
) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Tensors whose rows are one of the model; the last is asked for what is left of those."""
    left = shape[0]
    for part in parts:
        rows = checkpoint.stored[part].shape[0] if part != parts[-1] else left
        yield part, (rows, *shape[1:])
        left -= rows


def _shapes(checkpoint: Checkpoint) -> dict[str, tuple[int, ...]]:
    """The logical tensors and their shapes."""
    stored = checkpoint.stored
    found = {name: each.shape for name, each in stored.items() if name not in checkpoint.parts}
    for module, layout in checkpoint.layers.items():
        assert checkpoint.quantization is not None
        parts = parts_of(module, stored, checkpoint.quantization)
        shapes = {suffix: stored[name].shape for suffix, name in parts.items()}
        found[f"{module}.weight"] = checkpoint.quantization.shape(layout, shapes)
    return found


def _passed(checkpoint: Checkpoint, model: nn.Module, name: str) -> bool:
    """Whether a tensor that the model has not asked for is known to be of no use."""
    if name.endswith(".bias") and name.removesuffix(".bias") in checkpoint.layers:
        return True  # some tools write zeros
    keys = getattr(model, "_keys_to_ignore_on_load_unexpected", None) or []
    return any(re.search(key, name) for key in [*keys, _COMPUTED_BUFFERS])


def _in_text_model(checkpoint: Checkpoint, name: str) -> bool:
    naming = checkpoint.naming
    inside = name.startswith((f"{naming.base}.", f"{naming.head}."))
    return inside and not naming.is_mtp(name)


def _missing(name: str, homeless: list[str]) -> RequestError:
    renamed = nearest(name, homeless)
    hint = f"there is {renamed}, which the model has no place for" if renamed else None
    return RequestError(f"the weights have no tensor {name}", hint=hint)


def _check_dtype(checkpoint: Checkpoint, name: str) -> None:
    tensor = None if name in checkpoint.parts else checkpoint.stored.get(name)
    if tensor is not None and name.endswith((".weight", ".bias")) and tensor.dtype not in _WEIGHTS:
        raise RequestError(
            f"tensor {name} is stored as {DTYPE_NAMES[tensor.dtype]}, which holds no plain weights"
        )


def _check_head(checkpoint: Checkpoint) -> None:
    head, embedding = f"{checkpoint.naming.head}.weight", f"{checkpoint.naming.embedding}.weight"
    config = checkpoint.family.language_config(checkpoint.config)
    said = config.get("tie_word_embeddings") is True
    if said and head in checkpoint.stored and not checkpoint.tied:
        raise RequestError(
            f"config.json says that the head shares {embedding}, but {head} holds other values",
            hint="if the stored head is right, set tie_word_embeddings to false in config.json",
        )
