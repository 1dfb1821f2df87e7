"""From a directory to an engine: an empty model from the config, then tensor by tensor."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from llmopt.errors import RequestError
from llmopt.formats.checkpoint import Checkpoint
from llmopt.formats.empty_model import empty_model
from llmopt.formats.headers import read_json
from llmopt.runtimes.device import pick_device
from llmopt.runtimes.torch.engine import TorchEngine
from llmopt.runtimes.torch.linear import Decode, KernelSwitch, QuantizedLinear

Dtype = Literal["auto", "float32", "bfloat16", "float16"]

_COMPUTED_BUFFERS = re.compile(r"\brotary_emb\.inv_freq$")  # old checkpoints store them


def load(
    folder: Path, *, dtype: Dtype = "auto", device: str = "cpu", decode: Decode = "each"
) -> TorchEngine:
    """Load a plain or GPTQ directory for computing in `dtype` on `device`.

    "auto" takes the dtype of the stored weights where the device is fast in it (GPUs, CPUs with
    AMX), else float32. `decode` says whether quantized weights are decoded in every forward,
    which keeps memory small, or once. RequestError names a tensor that is missing, does not fit
    or has no place in the model.
    """
    checkpoint = Checkpoint.open(folder)
    target = torch.device(pick_device(device))
    computing = _dtype(dtype, checkpoint, target)
    model, switch = empty_model(checkpoint, computing), KernelSwitch()
    used = _put_quantized(model, checkpoint, computing, switch, decode, target)
    used |= _put_plain(model, checkpoint, computing, target)
    model.to(target)  # the buffers that only the config determines
    return TorchEngine(
        model,
        switch,
        end_tokens=_end_tokens(folder, checkpoint.config),
        unused=_leftovers(model, checkpoint, used),
    )


def _dtype(dtype: Dtype, checkpoint: Checkpoint, device: torch.device) -> torch.dtype:
    if dtype != "auto":
        return {
            "float32": torch.float32,
            "bfloat16": torch.bfloat16,
            "float16": torch.float16,
        }[dtype]
    if device.type != "cpu":
        return checkpoint.dense_dtype
    half = checkpoint.dense_dtype in (torch.bfloat16, torch.float16)
    return torch.bfloat16 if half and torch.cpu._is_amx_tile_supported() else torch.float32


def _put_quantized(
    model: nn.Module,
    checkpoint: Checkpoint,
    dtype: torch.dtype,
    switch: KernelSwitch,
    decode: Decode,
    device: torch.device,
) -> set[str]:
    """Replace the linears that are stored quantized; the names of the tensors used."""
    places = {checkpoint.naming.name(path): path for path, _ in model.named_modules()}
    used = set()
    for name in checkpoint.layers:
        if name not in places:
            raise RequestError(f"the weights have a quantized {name}, which the model has not")
        owner, _, leaf = places[name].rpartition(".")
        parent = model.get_submodule(owner)
        present = getattr(parent, leaf)
        tensor, bias = checkpoint.read_layer(name), None
        if f"{name}.bias" in checkpoint.stored:  # written for layers without one, too: zeros
            bias = _fitting(checkpoint, f"{name}.bias", (tensor.codes.shape[0],))
        elif getattr(present, "bias", None) is not None:
            raise RequestError(f"the weights have no tensor {name}.bias")
        expected = tuple(present.weight.shape)
        if checkpoint.family.conv1d and not isinstance(present, nn.Linear):
            expected = expected[::-1]
        if tuple(tensor.codes.shape) != expected:
            raise _misfit(f"{name}.weight", tuple(tensor.codes.shape), expected)
        layer = QuantizedLinear(tensor, bias, dtype=dtype, switch=switch, decode=decode)
        setattr(parent, leaf, layer.to(device))
        used |= {stored for stored in checkpoint.stored if stored.startswith(f"{name}.")}
    return used


def _put_plain(
    model: nn.Module, checkpoint: Checkpoint, dtype: torch.dtype, device: torch.device
) -> set[str]:
    """Read all parameters, and such buffers as are stored; the names of the tensors used."""
    naming, used = checkpoint.naming, set()
    head = f"{naming.head}.weight"
    tied = checkpoint.tied and bool(getattr(model.config, "tie_word_embeddings", False))
    parameters = dict(model.named_parameters(remove_duplicate=False))
    for path, present in model.state_dict(keep_vars=True).items():
        name = naming.name(path)
        if (name == head and tied) or (path not in parameters and name not in checkpoint.stored):
            continue
        value = _fitting(checkpoint, name, tuple(present.shape))
        _assign(model, path, value.to(device, dtype if value.is_floating_point() else None))
        used.add(name)
    if tied:
        embedding = model.get_submodule(f"{checkpoint.family.base}.{checkpoint.family.embedding}")
        model.get_submodule(checkpoint.family.head).weight = embedding.weight
        used.add(head)
    return used


def _assign(model: nn.Module, path: str, value: Tensor) -> None:
    owner, _, leaf = path.rpartition(".")
    module = model.get_submodule(owner)
    if leaf in module._buffers:
        module._buffers[leaf] = value
    else:
        module._parameters[leaf] = nn.Parameter(value, requires_grad=False)


def _fitting(checkpoint: Checkpoint, name: str, shape: tuple[int, ...]) -> Tensor:
    value = checkpoint.read(name)
    if tuple(value.shape) != shape:
        raise _misfit(name, tuple(value.shape), shape)
    return value


def _misfit(name: str, found: tuple[int, ...], expected: tuple[int, ...]) -> RequestError:
    return RequestError(
        f"tensor {name} has the shape {list(found)}, but the config asks for {list(expected)}"
    )


def _leftovers(model: nn.Module, checkpoint: Checkpoint, used: set[str]) -> tuple[str, ...]:
    """Tensors of other parts than the text model; one of its own without a place is an error."""
    naming = checkpoint.naming
    known = [
        re.compile(key) for key in getattr(model, "_keys_to_ignore_on_load_unexpected", []) or []
    ]
    unused = []
    for name in checkpoint.stored:
        if name in used or any(key.search(name) for key in [*known, _COMPUTED_BUFFERS]):
            continue
        if name.startswith((f"{naming.base}.", f"{naming.head}.")):
            raise RequestError(
                f"the weights have a tensor {name}, which the model has no place for"
            )
        unused.append(name)
    return tuple(sorted(unused))


def _end_tokens(folder: Path, config: dict[str, Any]) -> frozenset[int]:
    """The ids that end a generation: generation_config.json's, else the config's."""
    path = folder / "generation_config.json"
    settings = read_json(path) if path.is_file() else {}
    ids = settings.get("eos_token_id", config.get("eos_token_id"))
    if ids is None:
        return frozenset()
    return frozenset([ids] if isinstance(ids, int) else ids)
