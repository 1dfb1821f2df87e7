"""Family descriptions against the models that transformers really builds."""

from __future__ import annotations

import pytest
from torch import nn
from transformers.pytorch_utils import Conv1D

from llmopt.errors import RequestError
from llmopt.specs.families import FAMILIES, FamilySpec, family_of, naming_of
from tests import models


@pytest.fixture(scope="module", params=models.FAMILY_SETTINGS)
def built(request: pytest.FixtureRequest) -> tuple[str, nn.Module]:
    return request.param, models.with_plain_experts(models.build(request.param))


def module_paths(family: FamilySpec, model: nn.Module, block: int) -> list[list[str]]:
    """The inlets of a block as paths in the model, going by the tensors that it saves."""
    naming = naming_of(family, model.state_dict())
    return [[naming.module(name) for name in names] for names in naming.linears(block)]


def test_every_family_is_tried() -> None:
    assert {*models.FAMILY_SETTINGS, "gemma3"} <= set(FAMILIES)


def test_the_linears_of_a_block_are_all_named(built: tuple[str, nn.Module]) -> None:
    """... but for the routers, which stay as they are."""
    family, model = FAMILIES[built[0]], built[1]
    kind = Conv1D if family.conv1d else nn.Linear
    for index in range(2):
        block = f"{family.base}.{family.blocks}.{index}"
        linears = {
            f"{block}.{path}"
            for path, part in model.get_submodule(block).named_modules()
            if isinstance(part, kind)
        }
        linears -= {f"{block}.{router}" for router in family.routers}
        named = [path for inlet in module_paths(family, model, index) for path in inlet]
        assert sorted(named) == sorted(linears)


@pytest.mark.parametrize("name", ["mixtral", "qwen2_moe", "qwen3_moe"])
def test_routers_are_where_it_says(name: str) -> None:
    family = FAMILIES[name]
    model = models.build(name)
    assert family.routers[0] == "mlp.gate"
    for router in family.routers:
        part = model.get_submodule(f"{family.base}.{family.blocks}.1")
        assert part.get_submodule(router).weight.shape[1] == 64


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
    inputs, inlets = {}, module_paths(family, model, 1)
    for path in (path for inlet in inlets for path in inlet):

        def note(_: nn.Module, given: tuple[torch.Tensor], path: str = path) -> None:
            inputs[path] = given[0]

        model.get_submodule(path).register_forward_pre_hook(note)
    with torch.no_grad():
        model(models.tokens(3, 12))
    named = [path for inlet in inlets for path in inlet]
    assert sorted(inputs) == sorted(named)
    if family.experts is None and family.id != "opt":
        assert list(inputs) == named
    for inlet in inlets:
        assert all(torch.equal(inputs[path], inputs[inlet[0]]) for path in inlet)


def test_a_missing_base_prefix_is_put_back() -> None:
    family = FAMILIES["gpt2"]
    for stored in (["transformer.h.0.x", "transformer.h.1.x"], ["h.0.x", "h.1.x", "wte.weight"]):
        naming = naming_of(family, [*stored, "lm_head.weight"])
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
    naming = naming_of(FAMILIES["gemma3"], stored)
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
        naming_of(FAMILIES["llama"], names)
    with pytest.raises(RequestError, match=r"no tensor named model\.layers\.0"):
        naming_of(FAMILIES["llama"], ["something.else"])


@pytest.mark.parametrize("model_type", ["lama", "llama-2", "bert_llama"])
def test_an_unknown_model_type_is_told_what_is_supported_and_not_what_to_edit(
    model_type: str,
) -> None:
    with pytest.raises(RequestError, match=f"'{model_type}' are not supported") as caught:
        family_of({"model_type": model_type})
    assert "docs/families.md" in str(caught.value.hint)
    with pytest.raises(RequestError, match="does not say"):
        family_of({})


def test_names_go_both_ways() -> None:
    naming = naming_of(
        FAMILIES["mixtral"],
        ["model.layers.0.mlp.gate.weight", "model.layers.0.mlp.experts.3.w1.weight"],
    )
    module = "model.layers.0.mlp.experts.3.w1.weight"
    name = "model.layers.0.block_sparse_moe.experts.3.w1.weight"
    assert (naming.name(module), naming.rename(module), naming.rename(name)) == (name,) * 3
    assert naming.module(name) == module
    assert naming.experts == (4,)
    assert naming.pool_of(name) == "model.layers.0.block_sparse_moe.experts.*.w1.weight"
    assert naming.pool_of("model.layers.0.self_attn.q_proj") is None


def test_experts_come_in_two_rounds_after_attention() -> None:
    names = [f"model.layers.1.mlp.experts.{i}.up_proj.weight" for i in range(3)]
    names += ["model.layers.0.mlp.up_proj.weight", "model.layers.1.mlp.shared_expert_gate.weight"]
    naming = naming_of(FAMILIES["qwen2_moe"], names)
    assert naming.experts == (0, 3)
    assert [len(inlets) for inlets in naming.rounds(0)] == [1, 1, 1, 1]
    assert [len(inlets) for inlets in naming.rounds(1)] == [1, 1, 4, 4]
    assert naming.rounds(1)[3][0] == ("model.layers.1.mlp.shared_expert.down_proj",)
    assert naming.rounds(1)[2][3][1] == "model.layers.1.mlp.experts.2.up_proj"


@pytest.mark.parametrize(
    "extra",
    ["model.layers.2.eh_proj.weight", "mtp.layers.0.fc.weight", "model.mtp_layers.0.x.weight"],
)
def test_layers_that_predict_further_tokens_are_no_blocks(extra: str) -> None:
    names = [f"model.layers.{i}.mlp.up_proj.weight" for i in range(3 if "2" in extra else 2)]
    naming = naming_of(FAMILIES["llama"], [*names, extra])
    assert naming.block_count == 2
    assert naming.is_mtp(extra)
    assert not naming.is_mtp("model.layers.1.mlp.up_proj.weight")
    assert not naming.is_mtp("lm_head.weight")
