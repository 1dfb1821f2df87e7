"""Model directories, read tensor by tensor: plain, sharded, pickled, quantized, tied."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from llmopt.errors import RequestError
from llmopt.formats import gptq
from llmopt.formats.checkpoint import Checkpoint
from llmopt.formats.empty_model import empty_model
from llmopt.formats.layout import layout_of
from llmopt.grids.base import AffineParams, QuantizedTensor
from tests import models


@pytest.fixture
def plain(tmp_path: Path) -> Path:
    models.save(tmp_path / "model")
    return tmp_path / "model"


def stored(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


def test_every_tensor_is_read_as_stored(plain: Path) -> None:
    checkpoint = Checkpoint.open(plain)
    expected = stored(plain)
    assert set(checkpoint.names) == set(checkpoint.stored) == set(expected)
    for name, tensor in expected.items():
        assert torch.equal(checkpoint.read(name), tensor)
        assert checkpoint.stored[name].shape == tuple(tensor.shape)
        assert checkpoint.stored[name].dtype == tensor.dtype
    assert checkpoint.family.id == "llama"
    assert checkpoint.naming.block_count == 2
    assert checkpoint.side_files.carried == ["generation_config.json"]
    with pytest.raises(RequestError, match="no tensor nothing"):
        checkpoint.read("nothing")


def test_rows_are_read_alone(plain: Path) -> None:
    checkpoint = Checkpoint.open(plain)
    name = f"{checkpoint.naming.embedding}.weight"
    whole, wanted = checkpoint.read(name), torch.tensor([0, 1, 2, 7, 30, 31, 95])
    assert torch.equal(checkpoint.rows(name, wanted), whole[wanted])
    assert torch.equal(checkpoint.rows(name, wanted[3:4]), whole[7:8])
    assert torch.equal(torch.cat(list(checkpoint.pieces(name, 40))), whole)


@pytest.mark.parametrize("case", ["missing", "equal", "different", "config says no"])
def test_a_tied_head_is_recognized(plain: Path, case: str) -> None:
    tensors = stored(plain)
    if case != "missing":
        tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()
    if case == "different":
        tensors["lm_head.weight"][0] += 1
    if case == "config says no":
        config = json.loads((plain / "config.json").read_text())
        (plain / "config.json").write_text(json.dumps({**config, "tie_word_embeddings": False}))
    save_file(tensors, plain / "model.safetensors")
    assert Checkpoint.open(plain).tied == (case in ("missing", "equal"))


def quantized(rows: int, cols: int) -> QuantizedTensor:
    draw = torch.Generator().manual_seed(0)
    params = AffineParams(
        bits=4,
        group_size=32,
        symmetric=True,
        scale=torch.rand(rows, cols // 32, generator=draw).half().float(),
        zero=torch.full((rows, cols // 32), 8, dtype=torch.int32),
    )
    codes = torch.randint(0, 16, (rows, cols), generator=draw).to(torch.uint8)
    return QuantizedTensor(grid="int4", codes=codes, params=params)


@pytest.fixture
def with_layer(plain: Path) -> tuple[Path, str, QuantizedTensor]:
    """The model with one linear stored quantized."""
    module = "model.layers.1.mlp.up_proj"
    tensors = stored(plain)
    layer = quantized(*tensors.pop(f"{module}.weight").shape)
    packed = gptq.pack(layer, "gptq")
    save_file(
        {**tensors, **{f"{module}.{suffix}": t for suffix, t in packed.items()}},
        plain / "model.safetensors",
    )
    layers = {module: layout_of(layer)}
    settings = gptq.quantization_config(layers, version="gptq")
    (plain / "quantize_config.json").write_text(json.dumps(settings))
    return plain, module, layer


def test_quantized_layers_are_recognized(with_layer: tuple[Path, str, QuantizedTensor]) -> None:
    folder, module, layer = with_layer
    checkpoint = Checkpoint.open(folder)
    assert list(checkpoint.layers) == [module]
    assert f"{module}.weight" in checkpoint.names
    assert f"{module}.qweight" not in checkpoint.names
    back = checkpoint.read_layer(module)
    assert torch.equal(back.codes, layer.codes)
    assert torch.equal(back.params.scale, layer.params.scale)
    assert back.params.symmetric


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("missing scales", "up_proj has a qweight but no scales"),
        ("wrong bits", "up_proj: qweight"),
        ("left out", "up_proj is stored quantized, but the config says it is not"),
        ("none", "no linear is"),
    ],
)
def test_layers_that_do_not_fit_the_config_are_refused(
    with_layer: tuple[Path, str, QuantizedTensor], fault: str, message: str
) -> None:
    folder, module, _ = with_layer
    settings = json.loads((folder / "quantize_config.json").read_text())
    tensors = stored(folder)
    if fault == "missing scales":
        del tensors[f"{module}.scales"]
    if fault == "wrong bits":
        settings["bits"] = 8
    if fault == "left out":
        settings["dynamic"] = {f"-:{module}": {}}
    if fault == "none":
        del tensors[f"{module}.qweight"]
    save_file(tensors, folder / "model.safetensors")
    (folder / "quantize_config.json").write_text(json.dumps(settings))
    with pytest.raises(RequestError, match=message):
        Checkpoint.open(folder).read_layer(module)


def test_an_empty_model_has_the_shapes_but_no_weights(plain: Path) -> None:
    model = empty_model(Checkpoint.open(plain), torch.bfloat16)
    assert isinstance(model, nn.Module)
    shapes = {name: tuple(p.shape) for name, p in model.named_parameters()}
    del shapes["lm_head.weight"]  # tied: not stored
    assert {name: tuple(t.shape) for name, t in stored(plain).items()} == shapes
    assert all(p.is_meta and p.dtype == torch.bfloat16 for p in model.parameters())
    assert not any(buffer.is_meta for buffer in model.buffers())
