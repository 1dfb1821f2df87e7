"""From a directory to an engine: an empty model from the config, then tensor by tensor."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from llmopt.formats.checkpoint import Checkpoint
from llmopt.formats.codec import decode as decoded
from llmopt.formats.empty_model import empty_model
from llmopt.formats.files import read_json
from llmopt.formats.fit import check_fit, misfit
from llmopt.formats.stacks import assembled, by_parameter
from llmopt.grids.ggml import BlockTensor
from llmopt.runtimes.device import Dtype, computing_dtype, pick_device
from llmopt.runtimes.torch.engine import TorchEngine
from llmopt.runtimes.torch.int8 import Int8Linear, fits_int8
from llmopt.runtimes.torch.linear import Decode, KernelSwitch, QuantizedLinear


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
    computing = computing_dtype(dtype, checkpoint.dense_dtype, target)
    model, switch = empty_model(checkpoint, computing), KernelSwitch()
    unused = check_fit(checkpoint, model)
    _put_quantized(model, checkpoint, computing, switch, decode, target)
    _put_plain(model, checkpoint, computing, target)
    model.to(target)  # the buffers that only the config determines
    return TorchEngine(
        model,
        switch,
        end_tokens=_end_tokens(folder, checkpoint.config),
        unused=unused,
    )


def _put_quantized(
    model: nn.Module,
    checkpoint: Checkpoint,
    dtype: torch.dtype,
    switch: KernelSwitch,
    decode: Decode,
    device: torch.device,
) -> None:
    """Replace the linears that are stored quantized, those of other parts apart."""
    places = {checkpoint.naming.name(path): path for path, _ in model.named_modules()}
    for name in checkpoint.layers:
        if name not in places:
            continue
        owner, _, leaf = places[name].rpartition(".")
        tensor, bias = checkpoint.read_layer(name), None
        if isinstance(tensor, BlockTensor):  # no kernel here: decoded once
            weight = decoded(tensor)
            weight = weight.T.contiguous() if checkpoint.naming.transposed(name) else weight
            _assign(model, f"{places[name]}.weight", weight.to(device, dtype))
            continue
        if f"{name}.bias" in checkpoint.stored:  # written for layers without one, too: zeros
            bias = checkpoint.read(f"{name}.bias")
            if tuple(bias.shape) != tensor.codes.shape[:1]:
                raise misfit(f"{name}.bias", tuple(bias.shape), tuple(tensor.codes.shape[:1]))
        layer: nn.Module
        if device.type == "cpu" and fits_int8(tensor):
            layer = Int8Linear(tensor, bias)
        else:
            layer = QuantizedLinear(tensor, bias, dtype=dtype, switch=switch, decode=decode)
        setattr(model.get_submodule(owner), leaf, layer.to(device))


def _put_plain(
    model: nn.Module, checkpoint: Checkpoint, dtype: torch.dtype, device: torch.device
) -> None:
    """Read all parameters that are left, and such buffers as are stored."""
    naming = checkpoint.naming
    tied = checkpoint.tied and bool(getattr(model.config, "tie_word_embeddings", False))
    stacks = by_parameter(naming)
    for path, present in model.state_dict(keep_vars=True).items():
        if path in stacks:
            value = assembled(present, stacks[path], checkpoint.weight, dtype=dtype, device=device)
            _assign(model, path, value)
            continue
        if (parts := naming.parts(path)) and checkpoint.stored.keys() >= set(parts):
            value = torch.cat([checkpoint.read(part) for part in parts])
            _assign(model, path, value.to(device, dtype))
            continue
        name = naming.name(path)
        if name not in checkpoint.stored or (name == f"{naming.head}.weight" and tied):
            continue
        value = checkpoint.read(name)
        _assign(model, path, value.to(device, dtype if value.is_floating_point() else None))
    if tied:
        embedding = model.get_submodule(f"{checkpoint.family.base}.{checkpoint.family.embedding}")
        model.get_submodule(checkpoint.family.head).weight = embedding.weight


def _assign(model: nn.Module, path: str, value: Tensor) -> None:
    owner, _, leaf = path.rpartition(".")
    module = model.get_submodule(owner)
    if leaf in module._buffers:
        module._buffers[leaf] = value
    else:
        module._parameters[leaf] = nn.Parameter(value, requires_grad=False)


def _end_tokens(folder: Path, config: Mapping[str, Any]) -> frozenset[int]:
    """The ids that end a generation: generation_config.json's, else the config's."""
    path = folder / "generation_config.json"
    settings = read_json(path) if path.is_file() else {}
    ids = settings.get("eos_token_id", config.get("eos_token_id"))
    listed = ids if isinstance(ids, list) else [ids]
    return frozenset(each for each in listed if isinstance(each, int))
