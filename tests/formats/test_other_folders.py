"""Folders that are no models: each is called what it is."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from llmopt.errors import RequestError
from llmopt.formats.headers import read_headers
from llmopt.formats.pickles import unpickled
from tests import models

LORA = json.dumps({"peft_type": "LORA", "base_model_name_or_path": "org/base"})
FOLDERS: dict[str, tuple[dict[str, str], str]] = {
    "adapter": ({"adapter_config.json": LORA, "adapter_model.safetensors": ""},
                "is a LoRA adapter of org/base"),
    "adapter as a pickle": ({"adapter_config.json": LORA, "adapter_model.bin": ""},
                            "is a LoRA adapter of org/base"),
    "adapter beside a config": ({"config.json": "{}", "adapter_config.json": LORA},
                                "is a LoRA adapter of org/base"),
    "adapter with a damaged config": ({"adapter_config.json": "[", "config.json": "{}"},
                                      "is a LoRA adapter of a model that it does not name"),
    "another adapter": ({"adapter_config.json": '{"peft_type": "IA3"}'}, "is a ia3 adapter"),
    "diffusers": ({"model_index.json": "{}"}, "holds a diffusers pipeline"),
    "sentence-transformers": ({"modules.json": "[]"}, "holds a sentence-transformers model"),
    "tokenizer": ({"tokenizer.json": "{}"}, "holds a tokenizer without a model"),
    "training": ({"optimizer.pt": "", "trainer_state.json": "{}"}, "holds a training checkpoint"),
    "training with a config": ({"config.json": "{}", "optimizer.pt": ""},
                               "holds a training checkpoint"),
    "onnx": ({"config.json": "{}", "model.onnx": ""}, "holds an ONNX model"),
    "consolidated": ({"params.json": "{}", "consolidated.00.pth": "", "tokenizer.model": ""},
                     "holds weights in the layout of Meta or Mistral"),
    "consolidated with a config": ({"config.json": "{}", "consolidated.00.pth": ""},
                                   "holds weights in the layout of Meta or Mistral"),
    "mlx": ({"config.json": "{}", "weights.npz": ""}, "holds weights for MLX"),
    "tensorflow": ({"config.json": "{}", "tf_model.h5": ""}, "holds weights for TensorFlow"),
    "ckpt": ({"model.ckpt": ""}, "holds a checkpoint of another framework"),
    "empty": ({}, "is empty"),
    "config alone": ({"config.json": "{}"}, "it has no weights beside its config.json"),
    "text": ({"notes.txt": ""}, "is not a model: it has no config.json"),
}  # fmt: skip


@pytest.mark.parametrize("case", FOLDERS)
def test_it_is_said_what_a_folder_is(tmp_path: Path, case: str) -> None:
    files, says = FOLDERS[case]
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    with pytest.raises(RequestError) as error:
        read_headers(tmp_path)
    assert says in error.value.message
    if "adapter" in case:
        assert "merge_and_unload()" in (error.value.hint or "")


def test_a_model_with_an_adapter_in_its_folder(tmp_path: Path) -> None:
    models.save(tmp_path)
    (tmp_path / "adapter_config.json").write_text(LORA)
    with pytest.raises(RequestError, match="has to be merged first"):
        read_headers(tmp_path)


def test_what_trainers_leave_beside_pickled_weights_is_passed_over(tmp_path: Path) -> None:
    model = models.save(tmp_path / "m")
    (tmp_path / "m" / "model.safetensors").unlink()
    torch.save(model.state_dict(), tmp_path / "m" / "pytorch_model.bin")
    torch.save({"state": {0: torch.ones(3)}}, tmp_path / "m" / "optimizer.pt")
    torch.save(torch.ones(3), tmp_path / "m" / "rng_state_0.pth")
    found = read_headers(unpickled(tmp_path / "m", tmp_path / "cache")).tensors
    assert found.keys() <= model.state_dict().keys()
