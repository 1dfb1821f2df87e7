"""A model is looked at once, whatever is asked of it, and anew when it changes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from llmopt.errors import RequestError
from llmopt.formats import values
from llmopt.soundness import check_model
from tests import models

NORM = "model.layers.1.input_layernorm.weight"


def change(folder: Path, name: str, value: torch.Tensor | None) -> None:
    tensors = load_file(folder / "model.safetensors")
    tensors.pop(name, None)
    save_file(tensors | ({} if value is None else {name: value}), folder / "model.safetensors")


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("missing", f"no tensor {NORM}"),
        ("shape", rf"{NORM} has the shape \[63\], but the config asks for \[64\]"),
        ("value", f"{NORM} holds NaN or infinite values: 1 of its 64 values, the first at .5."),
        ("blocks", "config.json says 3 blocks, the weights have 2"),
    ],
)
def test_what_is_refused(tmp_path: Path, fault: str, message: str) -> None:
    models.save(tmp_path)
    norm = torch.ones(64)
    if fault == "value":
        norm[5] = torch.nan
    if fault == "blocks":
        path = tmp_path / "config.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), "num_hidden_layers": 3}))
    change(tmp_path, NORM, {"missing": None, "shape": norm[:63].clone()}.get(fault, norm))
    with pytest.raises(RequestError, match=message):
        check_model(tmp_path)


def test_weights_are_read_once_and_again_after_a_change(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    models.save(tmp_path)
    looks = []
    check_values = values.check_values
    monkeypatch.setattr(
        values, "check_values", lambda *args: looks.append(1) or check_values(*args)
    )
    done: list[tuple[int, int]] = []
    check_model(tmp_path, lambda *both: done.append(both))
    check_model(tmp_path)
    assert looks == [1]
    assert done[-1][0] == done[-1][1] > 0
    change(tmp_path, NORM, torch.full((64,), torch.inf))
    for _ in range(2):  # a refusal is not remembered as anything else
        with pytest.raises(RequestError, match="64 of its 64"):
            check_model(tmp_path)
