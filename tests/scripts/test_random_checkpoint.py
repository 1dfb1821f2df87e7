"""Random checkpoints are what transformers takes for a model of the family, and llmopt, too."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoModelForImageTextToText

from llmopt.formats.checkpoint import Checkpoint
from llmopt.formats.safetensors_header import read_file_headers
from scripts import random_checkpoint
from scripts.random_checkpoint import with_blocks, write_model
from tests.models import FAMILY_SETTINGS

_COMMON = {"vocab_size": 96, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
_GEMMA3 = {
    "model_type": "gemma3",
    "text_config": _COMMON | FAMILY_SETTINGS["gemma3_text"] | {"model_type": "gemma3_text"},
    "vision_config": {
        "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1,
        "num_attention_heads": 2, "image_size": 28, "patch_size": 14,
    },
    "mm_tokens_per_image": 4, "image_token_index": 90,
    "boi_token_index": 91, "eoi_token_index": 92,
}  # fmt: skip


def config_of(family: str, **settings: Any) -> dict[str, Any]:
    return {"model_type": family, **_COMMON, **FAMILY_SETTINGS[family], **settings}


def loaded(folder: Path, loader: Any = AutoModelForCausalLM) -> torch.nn.Module:
    """The model, of whose weights none is missing and none left over."""
    model, said = loader.from_pretrained(folder, output_loading_info=True)
    assert not {key: value for key, value in said.items() if value}
    return model


@pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
@pytest.mark.parametrize("family", FAMILY_SETTINGS)
def test_transformers_misses_nothing_and_computes_with_it(
    tmp_path: Path, family: str, tied: bool
) -> None:
    config = config_of(family, tie_word_embeddings=tied)
    size = write_model(tmp_path / "m", config, dtype=torch.float32)
    model = loaded(tmp_path / "m")
    assert size == 4 * sum(each.numel() for each in model.parameters())
    tokens = torch.arange(32).reshape(2, 16)
    with torch.no_grad():
        output = model(tokens, output_hidden_states=True)
    for hidden in output.hidden_states[1:]:
        assert 0.3 < float(hidden.std()) < 10
    assert 0.3 < float(output.logits.std()) < 3


def test_a_model_that_sees_pictures_has_all_its_parts(tmp_path: Path) -> None:
    write_model(tmp_path / "m", _GEMMA3, dtype=torch.bfloat16)
    loaded(tmp_path / "m", AutoModelForImageTextToText)
    assert Checkpoint.open(tmp_path / "m").naming.block_count == 2


def test_experts_have_the_names_of_checkpoints(tmp_path: Path) -> None:
    write_model(tmp_path / "m", config_of("mixtral"), dtype=torch.bfloat16)
    names = read_file_headers(tmp_path / "m" / "model.safetensors")
    assert "model.layers.1.block_sparse_moe.experts.3.w2.weight" in names


def test_shards_say_where_each_tensor_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = config_of("qwen3")
    write_model(tmp_path / "one", config, dtype=torch.float32)
    monkeypatch.setattr(random_checkpoint, "SHARD_BYTES", 50_000)
    monkeypatch.setattr(random_checkpoint, "_ELEMENTS_AT_ONCE", 1000)
    size = write_model(tmp_path / "many", config, dtype=torch.float32)
    index = json.loads((tmp_path / "many" / "model.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] == size
    assert len(set(index["weight_map"].values())) > 3
    one, many = loaded(tmp_path / "one"), loaded(tmp_path / "many")
    for ours, theirs in zip(one.parameters(), many.parameters(), strict=True):
        assert torch.equal(ours, theirs)


def test_more_blocks_begin_as_fewer_do(tmp_path: Path) -> None:
    config = config_of("gemma3_text")
    write_model(tmp_path / "two", config, dtype=torch.bfloat16)
    write_model(tmp_path / "five", with_blocks(config, 5), dtype=torch.bfloat16)
    two, five = loaded(tmp_path / "two"), loaded(tmp_path / "five")
    assert five.config.layer_types == [*two.config.layer_types * 2, two.config.layer_types[0]]
    known = two.state_dict()
    assert len(five.state_dict()) > len(known)
    assert all(torch.equal(five.state_dict()[name], value) for name, value in known.items())


def test_blocks_are_counted_where_the_config_does() -> None:
    assert with_blocks(config_of("gpt2"), 7)["n_layer"] == 7
    assert with_blocks(_GEMMA3, 7)["text_config"]["num_hidden_layers"] == 7


def test_a_hollow_one_has_headers_and_takes_no_disk(tmp_path: Path) -> None:
    config = config_of("llama", vocab_size=100_000)
    size = write_model(tmp_path / "m", config, dtype=torch.bfloat16, hollow=True)
    path = tmp_path / "m" / "model.safetensors"
    assert path.stat().st_size > size > 10_000_000
    assert path.stat().st_blocks * 512 < 1_000_000
    assert Checkpoint.open(tmp_path / "m").naming.block_count == 2
