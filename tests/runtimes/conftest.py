"""Tiny GPTQ directories, and what they must compute."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from llmopt.formats import gptq
from llmopt.formats.checkpoint import Checkpoint
from llmopt.formats.gptq_config import quantization_config
from llmopt.formats.layout import layout_of
from llmopt.grids import integer
from llmopt.grids.base import GridOptions, QuantizedTensor
from llmopt.specs.formats import GPTQ_V1
from tests import models

#: the layout packs 32 outputs together, so keys and values need as many
_KEYS = {"num_key_value_heads": 4}
_WHOLE_WORDS: dict[str, dict[str, Any]] = {
    **{
        name: _KEYS
        for name, settings in models.FAMILY_SETTINGS.items()
        if "num_key_value_heads" in settings
    },
    "falcon": {"multi_query": False},
}

#: (family, layout) -> the directory, and transformers' model with the decoded weights
Quantize = Callable[..., tuple[Path, nn.Module]]


def shuffled(tensor: QuantizedTensor, seed: int) -> QuantizedTensor:
    """The same parameters with groups dealt out over the columns: act-order's g_idx."""
    params, cols = tensor.params, tensor.codes.shape[1]
    index = (torch.arange(cols) // (cols // params.scale.shape[1])).to(torch.int32)
    index = index[torch.randperm(cols, generator=torch.Generator().manual_seed(seed))]
    params = type(params)(**{**params.__dict__, "group_index": index})
    return QuantizedTensor(grid=tensor.grid, codes=tensor.codes, params=params)


def quantized(
    weight: torch.Tensor, bits: int, group_size: int, symmetric: bool, act_order: bool
) -> QuantizedTensor:
    options = GridOptions(
        grid=f"int{bits}", bits=bits, group_size=group_size, symmetric=symmetric,
        scale_search="minmax", min_zero=1,
    )  # fmt: skip
    params = integer.fit(weight, options)
    tensor = QuantizedTensor(grid=options.grid, codes=integer.encode(weight, params), params=params)
    return shuffled(tensor, 3) if act_order else tensor


@pytest.fixture
def quantize(tmp_path: Path) -> Quantize:
    def make(
        family: str = "llama",
        *,
        bits: int = 4,
        group_size: int = 32,
        symmetric: bool = False,
        act_order: bool = False,
        version: str = GPTQ_V1,
        **settings: Any,
    ) -> tuple[Path, nn.Module]:
        folder = tmp_path / "model"
        model = models.save(folder, family, **_WHOLE_WORDS.get(family, {}), **settings)
        model = models.with_plain_experts(model)
        checkpoint = Checkpoint.open(folder)
        stored = load_file(folder / "model.safetensors")
        layers = {}
        for block in range(checkpoint.naming.block_count):
            for name in (name for inlet in checkpoint.naming.linears(block) for name in inlet):
                weight = stored.pop(f"{name}.weight")
                weight = weight.T.contiguous() if checkpoint.family.conv1d else weight
                tensor = quantized(weight, bits, group_size, symmetric, act_order)
                packed = gptq.pack(tensor, version)
                stored |= {f"{name}.{suffix}": part for suffix, part in packed.items()}
                layers[name] = layout_of(tensor)
                decoded = integer.decode(tensor.codes, tensor.params)
                decoded = decoded.T if checkpoint.family.conv1d else decoded
                module = model.get_submodule(checkpoint.naming.module(name))
                module.weight.data = decoded.contiguous()
        save_file(stored, folder / "model.safetensors", metadata={"format": "pt"})
        config = json.loads((folder / "config.json").read_text())
        config["quantization_config"] = quantization_config(layers, version=version)
        (folder / "config.json").write_text(json.dumps(config))
        return folder, model

    return make
