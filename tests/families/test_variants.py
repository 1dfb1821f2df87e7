"""Settings that change which linears there are are looked at when a checkpoint shows that."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from llmopt.discovery.shrink import tiny_config, tiny_model
from llmopt.formats.checkpoint import Checkpoint
from llmopt.specs import families
from scripts.tiny_models import config_of, own_of
from tests.families import works


def test_blocks_that_the_data_does_not_know_are_looked_at(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without a query of low rank GLM's attention has another linear, and lacks two."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    name, plain = "glm4_moe_lite", {"q_lora_rank": None}
    assert not any("self_attn.q_proj" in str(kind) for kind in families.FAMILIES[name].kinds)
    config = tiny_config({**config_of(name), **plain}, {**own_of(name), **plain})
    model: Any = tiny_model(config, dtype=torch.float32)
    model.save_pretrained(tmp_path / "model")
    naming = Checkpoint.open(tmp_path / "model").naming
    assert naming.linears(0)[0][0] == "model.layers.0.self_attn.q_proj"
    assert not naming.lacking
    assert works.loads(tmp_path / "model") < 1e-4
    assert len(list((tmp_path / "cache" / "llmopt" / "families").iterdir())) == 1


def test_what_one_block_lacks_is_no_other_kind(tmp_path: Path) -> None:
    works.save("llama", tmp_path / "model")
    names = [n for n in Checkpoint.open(tmp_path / "model").stored if "0.mlp.up_proj" not in n]
    naming = families.naming_of(families.FAMILIES["llama"], names)
    assert not naming.lacking
    without = [name for name in names if "up_proj" not in name]
    lacking = families.naming_of(families.FAMILIES["llama"], without).lacking
    assert lacking == {"mlp.up_proj"}
