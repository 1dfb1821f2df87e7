"""Family descriptions against the models that transformers really builds."""

from __future__ import annotations

import pytest
from torch import nn
from transformers.pytorch_utils import Conv1D

from llmopt.errors import RequestError
from llmopt.specs.families import FAMILIES, family_of
from tests import models


@pytest.fixture(scope="module", params=models.FAMILY_SETTINGS)
def built(request: pytest.FixtureRequest) -> tuple[str, nn.Module]:
    return request.param, models.build(request.param)


def test_every_family_is_tried() -> None:
    assert {*models.FAMILY_SETTINGS, "gemma3"} == set(FAMILIES)


def test_the_linears_of_a_block_are_all_named(built: tuple[str, nn.Module]) -> None:
    family, model = FAMILIES[built[0]], built[1]
    blocks = model.get_submodule(f"{family.base}.{family.blocks}")
    kind = Conv1D if family.conv1d else nn.Linear
    for block in blocks.children():
        linears = {path for path, part in block.named_modules() if isinstance(part, kind)}
        named = [path for inlet in family.inlets for path in inlet]
        assert sorted(named) == sorted(linears)


def test_the_other_modules_are_where_it_says(built: tuple[str, nn.Module]) -> None:
    family, model = FAMILIES[built[0]], built[1]
    assert model.get_submodule(f"{family.base}.{family.embedding}") is model.get_input_embeddings()
    assert model.get_submodule(family.head) is model.get_output_embeddings()
    if built[0] != "opt":  # OPT with norms after each block has no final one
        model.get_submodule(f"{family.base}.{family.final_norm}")


def test_the_gain_of_a_norm_is_what_it_says(built: tuple[str, nn.Module]) -> None:
    """A norm whose weight makes the gain 1 keeps a unit-variance input as it is."""
    import torch

    family, model = FAMILIES[built[0]], built[1]
    if built[0] == "opt":
        return
    norm = model.get_submodule(f"{family.base}.{family.final_norm}")
    with torch.no_grad():
        norm.weight.fill_(1 - family.norm_gain_offset)
        if getattr(norm, "bias", None) is not None:
            norm.bias.zero_()
    x = torch.tensor([1.0, -1.0] * 32)
    assert torch.allclose(norm(x), x, atol=1e-4)


def test_an_inlet_has_one_input(built: tuple[str, nn.Module]) -> None:
    import torch

    family, model = FAMILIES[built[0]], built[1]
    inputs = {}
    for path in (path for inlet in family.inlets for path in inlet):
        name = f"{family.base}.{family.blocks}.0.{path}"

        def note(_: nn.Module, given: tuple[torch.Tensor], path: str = path) -> None:
            inputs[path] = given[0]

        model.get_submodule(name).register_forward_pre_hook(note)
    with torch.no_grad():
        model(models.tokens(1, 4))
    assert list(inputs) == [path for inlet in family.inlets for path in inlet] or family.id == "opt"
    for inlet in family.inlets:
        assert all(torch.equal(inputs[path], inputs[inlet[0]]) for path in inlet)


def test_a_missing_base_prefix_is_put_back() -> None:
    family = FAMILIES["gpt2"]
    for stored in (["transformer.h.0.x", "transformer.h.1.x"], ["h.0.x", "h.1.x", "wte.weight"]):
        naming = family.naming([*stored, "lm_head.weight"])
        assert naming.block_count == 2
        assert naming.rename(stored[0]) == "transformer.h.0.x"
        assert naming.rename("lm_head.weight") == "lm_head.weight"
        assert naming.linears(1)[0] == ("transformer.h.1.attn.c_attn",)
        assert naming.block_of("transformer.h.1.attn.c_attn.weight") == 1
        assert naming.block_of("transformer.wte.weight") is None


@pytest.mark.parametrize(
    ("base", "head"),
    [
        ("language_model.model", "language_model.lm_head"),
        ("model.language_model", "lm_head"),
    ],
)
def test_a_text_model_inside_another_is_found(base: str, head: str) -> None:
    stored = [f"{base}.layers.0.mlp.up_proj.weight", f"{head}.weight", "vision_tower.layers.0.x"]
    naming = FAMILIES["gemma3"].naming(stored)
    assert (naming.base, naming.head, naming.embedding) == (base, head, f"{base}.embed_tokens")
    assert naming.name("model.layers.0.mlp.up_proj.weight") == stored[0]
    assert naming.name("lm_head.weight") == f"{head}.weight"
    assert naming.rename("vision_tower.layers.0.x") == "vision_tower.layers.0.x"


def test_the_text_config_is_taken_from_inside() -> None:
    config = {"model_type": "gemma3", "text_config": {"hidden_size": 8}, "vision_config": {}}
    inner = family_of(config).language_config(config)
    assert inner == {"model_type": "gemma3_text", "hidden_size": 8}
    with pytest.raises(RequestError, match="no text_config"):
        family_of(config).language_config({"model_type": "gemma3"})


def test_blocks_that_are_missing_are_named() -> None:
    names = [f"model.layers.{i}.x" for i in (0, 1, 3)]
    with pytest.raises(RequestError, match="no tensor of block 2"):
        FAMILIES["llama"].naming(names)
    with pytest.raises(RequestError, match=r"no tensor named model\.layers\.0"):
        FAMILIES["llama"].naming(["something.else"])


def test_an_unknown_model_type_gets_the_nearest_name() -> None:
    with pytest.raises(RequestError, match="'lama' are not supported") as caught:
        family_of({"model_type": "lama"})
    assert "llama" in str(caught.value.hint)
    with pytest.raises(RequestError, match="does not say"):
        family_of({})
