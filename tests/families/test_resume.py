"""A killed walk ends with the same bytes, whatever kinds of blocks a model has."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.blockwalk.conftest import Round, run
from tests.blockwalk.test_resume import KillAt, Killed
from tests.families import works

#: attention, MoE in modules and in one tensor, latent attention, state spaces, linear attention,
#: convolutions, shared keys and values with embeddings for each layer, parallel blocks
TYPES = [
    "gpt_oss",
    "gemma4_text",
    "qwen3_next",
    "jamba",
    "mamba2",
    "deepseek_v3",
    "bloom",
    "falcon_h1",
    "granitemoehybrid",
    "lfm2",
]


def die(done: int, _: int) -> None:
    if done == 1:
        raise Killed


@pytest.mark.parametrize("model_type", TYPES)
def test_a_killed_walk_ends_with_the_same_bytes(model_type: str, tmp_path: Path) -> None:
    works.save(model_type, tmp_path / "model")
    options = {"tokens": works.tokens(), "save_every": 1}
    model = tmp_path / "model"
    skip = works.unpackable(model)
    whole = run(model, tmp_path / "whole", Round(skip=skip), **options)
    wanted = (tmp_path / "whole" / "out" / "model.safetensors").read_bytes()
    with pytest.raises(Killed):
        run(model, tmp_path / "a", Round(skip=skip), on_block=die, **options)
    with pytest.raises(Killed):  # in the block after that
        run(model, tmp_path / "a", KillAt(1, skip=skip), **options)
    records = run(model, tmp_path / "a", Round(skip=skip), **options)
    assert (tmp_path / "a" / "out" / "model.safetensors").read_bytes() == wanted
    assert records == whole
