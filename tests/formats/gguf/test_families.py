"""Every family, to GGUF and back, and in llama.cpp."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import gguf
import pytest
import torch

from llmopt.errors import RequestError
from llmopt.formats.checkpoint import Checkpoint
from llmopt.formats.gguf.container import read_gguf
from llmopt.formats.gguf.families import GGUF_FAMILIES, gguf_family
from llmopt.formats.gguf.hf_config import hf_config
from llmopt.formats.gguf.metadata import model_metadata
from llmopt.formats.gguf.names import placements
from llmopt.formats.quantization import read_contents
from llmopt.model.contents import LogicalTensor
from llmopt.model.layout import Layout
from llmopt.runtimes.torch.loading import load
from llmopt.specs.families import FAMILIES
from tests.gguf_files import (
    FOR_LLAMA_CPP,
    altered,
    llama_cpp_logits,
    write_model,
)
from tests.models import save, tokens

_THETA = {"rope_theta": 10000.0}
_LLAMA3 = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
_LONG = {
    "long_factor": [float(i + 2) for i in range(8)],
    "short_factor": [1.0 + i / 8 for i in range(8)],
}
_YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16}
_LOCAL = {"rope_type": "default", "rope_theta": 10000.0}
_GLOBAL = {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6}

CASES: list[tuple[str, dict[str, Any]]] = [
    *((family, {}) for family in GGUF_FAMILIES if family != "gemma3"),
    ("llama", {"attention_bias": False, "tie_word_embeddings": False, "mlp_bias": True}),
    ("llama", {"head_dim": 32}),
    ("llama", {"rope_parameters": {"rope_type": "linear", "factor": 4.0, "rope_theta": 500.0}}),
    ("llama", {"rope_parameters": {**_YARN, **_THETA}}),
    ("llama", {"rope_parameters": {**_YARN, **_THETA, "attention_factor": 1.0}}),
    ("llama", {"rope_parameters": {**_YARN, **_THETA, "attention_factor": 2.0, "mscale": 9.0}}),
    ("llama", {"rope_parameters": {**_YARN, **_THETA, "mscale": 1.0, "mscale_all_dim": 1.0}}),
    ("llama", {"rope_parameters": {**_YARN, **_THETA, "mscale": 1.0, "mscale_all_dim": 0.5}}),
    ("llama", {"rope_parameters": {**_YARN, **_THETA, "mscale": 2.0}}),
    ("llama", {"rope_parameters": {**_YARN, **_THETA, "factor": 1.0, "attention_factor": 1.5}}),
    ("llama", {"rope_parameters": {**_YARN, **_THETA, "beta_fast": 32, "beta_slow": 1.0}}),
    ("qwen3", {"rope_parameters": {**_YARN, **_THETA, "attention_factor": 0.7}}),
    ("gpt_neox", {"rope_parameters": {**_YARN, **_THETA, "attention_factor": 0.7}}),
    (
        "llama",
        {
            "rope_parameters": {
                "rope_type": "llama3", "original_max_position_embeddings": 16, **_LLAMA3, **_THETA
            },
            "max_position_embeddings": 128,
        },
    ),
    ("qwen2", {"tie_word_embeddings": True}),
    ("qwen2_moe", {"tie_word_embeddings": True}),
    ("gemma3_text", {"tie_word_embeddings": True}),
    (
        "gemma3_text",
        {"rope_parameters": {"sliding_attention": _LOCAL, "full_attention": _GLOBAL}},
    ),
    (
        "gemma3_text",
        {"rope_parameters": {"sliding_attention": _LOCAL, "full_attention": {**_YARN, **_THETA}}},
    ),
    (
        "phi3",
        {
            "rope_parameters": {"rope_type": "longrope", "factor": 4.0, **_LONG, **_THETA},
            "original_max_position_embeddings": 256,
            "max_position_embeddings": 1024,
        },
    ),
    ("gpt_neox", {"use_parallel_residual": False, "rotary_pct": 1.0}),
    ("gpt_neox", {"tie_word_embeddings": True}),
    ("falcon", {"new_decoder_architecture": True, "num_kv_heads": 2}),
    ("falcon", {"multi_query": False}),
]  # fmt: skip


def name(case: tuple[str, dict[str, Any]]) -> str:
    return "-".join([case[0], *case[1]])


def build(folder: Path, family: str, changes: dict[str, Any]) -> torch.nn.Module:
    return save(folder, family, **{**FOR_LLAMA_CPP.get(family, {}), **changes})


def view(folder: Path, path: Path) -> Path:
    """The model folder of a GGUF file."""
    import json

    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(hf_config(read_gguf(path))), "utf-8")
    (folder / "model.gguf").symlink_to(path)
    return folder


@pytest.mark.parametrize("case", CASES, ids=name)
def test_llama_cpp_computes_what_transformers_does(
    tmp_path: Path, case: tuple[str, dict[str, Any]]
) -> None:
    pytest.importorskip("llama_cpp")
    model, sequence = build(tmp_path / "m", *case), tokens(1, 24)
    write_model(tmp_path / "m", tmp_path / "a.gguf")
    with torch.no_grad():
        expected = model(sequence).logits[0].log_softmax(-1)
    found = llama_cpp_logits(tmp_path / "a.gguf", sequence[0].tolist()).log_softmax(-1)
    assert torch.equal(found.argmax(-1), expected.argmax(-1))
    divergence = (expected.exp() * (expected - found)).sum(-1).mean()
    assert divergence < 1e-6


@pytest.mark.parametrize("case", CASES, ids=name)
def test_a_float32_file_is_the_model(tmp_path: Path, case: tuple[str, dict[str, Any]]) -> None:
    model, sequence = build(tmp_path / "m", *case), tokens(2, 24)
    write_model(tmp_path / "m", tmp_path / "a.gguf")
    source, back = (
        Checkpoint.open(tmp_path / "m"),
        Checkpoint.open(view(tmp_path / "v", tmp_path / "a.gguf")),
    )
    head = f"{source.naming.head}.weight"
    assert set(source.names) - {head} == set(back.names) - {head}
    for tensor in source.names:
        if source.family.norm_gain_offset and "norm" in tensor:  # 1 + w is rounded
            torch.testing.assert_close(back.read(tensor), source.read(tensor), rtol=0, atol=1e-7)
        else:
            assert torch.equal(back.read(tensor), source.read(tensor)), tensor
    with torch.no_grad():
        expected = model(sequence).logits
    torch.testing.assert_close(load(back.folder).logits(sequence), expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("family", ["llama", "mixtral", "gpt2", "gemma3_text"])
@pytest.mark.parametrize("type_id", ["F16", "Q8_0"])
def test_rounded_weights_come_back_in_their_places(
    tmp_path: Path, family: str, type_id: str
) -> None:
    build(tmp_path / "m", family, {})
    write_model(tmp_path / "m", tmp_path / "a.gguf", type_id)
    source, back = (
        Checkpoint.open(tmp_path / "m"),
        Checkpoint.open(view(tmp_path / "v", tmp_path / "a.gguf")),
    )
    linears = {n for b in range(2) for inlet in source.naming.linears(b) for n in inlet}
    assert set(back.layers) == (linears if type_id == "Q8_0" else set())
    assert set(back.names) == set(source.names)
    assert read_contents(back.folder).weight_count == read_contents(source.folder).weight_count
    for module in linears:
        expected, found = source.weight(module), back.weight(module)
        assert found.shape == expected.shape
        assert (found - expected).abs().max() <= expected.abs().max() / 200
    logits = load(tmp_path / "m").logits(tokens(1))
    assert (load(back.folder).logits(tokens(1)) - logits).abs().max() < 0.1 * logits.abs().max()


@pytest.mark.parametrize("family", [f for f in GGUF_FAMILIES if f != "gemma3"])
def test_names_are_those_of_the_gguf_package(tmp_path: Path, family: str) -> None:
    build(tmp_path / "m", family, {})
    contents = read_contents(tmp_path / "m")
    found = (
        placements(contents.naming, contents.config, contents.tensors, tied=False)
        if (family not in ("gemma2", "llama", "gpt2", "falcon"))
        else placements(contents.naming, contents.config, contents.tensors, tied=True)
    )
    numbers = {value: key for key, value in gguf.MODEL_ARCH_NAMES.items()}
    names = gguf.get_tensor_name_map(numbers[GGUF_FAMILIES[family].architecture], 2)
    for place in found:
        source = place.sources[0]
        if len(place.sources) > 1:  # the package knows experts by what holds them all
            source = source.replace(".experts.0.", ".experts.")
        if ".block_sparse_moe.experts" in source:
            source = source.replace("model.", "").replace("block_sparse_moe", "feed_forward")
        assert names.get_name(source, try_suffixes=(".weight", ".bias")) == place.name


def test_multimodal_checkpoints_give_their_text_model(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    build(tmp_path / "m", "gemma3_text", {"tie_word_embeddings": True})
    import json

    text = json.loads((tmp_path / "m/config.json").read_text("utf-8"))
    config = {"model_type": "gemma3", "text_config": text, "tie_word_embeddings": True}
    (tmp_path / "m/config.json").write_text(json.dumps(config), "utf-8")
    weights = load_file(tmp_path / "m/model.safetensors")
    renamed = {f"language_model.{name}": tensor for name, tensor in weights.items()}
    renamed["vision_tower.x.weight"] = torch.zeros(3, 3)
    save_file(renamed, tmp_path / "m/model.safetensors")
    write_model(tmp_path / "m", tmp_path / "a.gguf")
    found = read_gguf(tmp_path / "a.gguf")
    assert found.architecture == "gemma3"
    assert len(found.tensors) == len(weights)


@pytest.mark.parametrize(
    ("family", "changes", "fault"),
    [
        ("opt", {}, "cannot run opt models"),
        ("falcon", {"alibi": True}, "ALiBi"),
        ("falcon", {"bias": True, "alibi": False}, "no place for tensor"),
        ("gemma2", {"tie_word_embeddings": False}, "its head is not its embedding"),
        ("gemma2", {"query_pre_attn_scalar": 99}, "query_pre_attn_scalar = 99"),
        ("qwen2_moe", {"mlp_only_layers": [0]}, "blocks without experts"),
        ("qwen2_moe", {"norm_topk_prob": True}, "expert weights that are normalised"),
        ("qwen3_moe", {"norm_topk_prob": False}, "expert weights that are not normalised"),
        ("llama", {"hidden_act": "gelu"}, "the activation gelu"),
        ("qwen3", {"attention_bias": True}, "no place for tensor"),
        (
            "llama",
            {"rope_parameters": {"rope_type": "dynamic", "factor": 2.0, **_THETA}},
            "scaled by 'dynamic'",
        ),
        *(
            ("llama", {"rope_parameters": {**_YARN, **_THETA, key: asked}}, f"not {asked}")
            for key, asked in [
                ("beta_fast", 16), ("beta_slow", 2), ("truncate", False),
                ("extrapolation_factor", 0.5),
            ]
        ),
        (
            "gemma3_text",
            {
                "rope_parameters": {
                    "sliding_attention": _LOCAL,
                    "full_attention": {**_YARN, **_THETA, "attention_factor": 1.0},
                }
            },
            "it would apply to blocks with a window, too",
        ),
    ],
)  # fmt: skip
def test_what_llama_cpp_cannot_run_is_refused(
    tmp_path: Path, family: str, changes: dict[str, Any], fault: str
) -> None:
    build(tmp_path / "m", family, changes)
    with pytest.raises(RequestError) as caught:
        write_model(tmp_path / "m", tmp_path / "a.gguf")
    assert fault in caught.value.message


@pytest.mark.parametrize(
    ("changes", "cause"),
    [
        ({"rms_norm_eps": None}, "rms_norm_eps"),
        ({"num_attention_heads": 0}, "ZeroDivisionError"),
        ({"rope_parameters": {"rope_type": "linear", **_THETA}}, "Missing required keys"),
        (
            {"rope_parameters": {"rope_type": "linear", "factor": None, **_THETA}},
            "factor as a number above 0, not None",
        ),
        (
            {"rope_parameters": {**_YARN, **_THETA, "factor": "4"}},
            "factor as a number above 0, not '4'",
        ),
    ],
)
def test_a_config_that_makes_no_model_is_refused(changes: dict[str, Any], cause: str) -> None:
    config = {"model_type": "llama", **changes}
    with pytest.raises(RequestError) as caught:
        model_metadata(FAMILIES["llama"], config, "tiny", 0)
    assert "config.json" in caught.value.message
    assert cause in caught.value.message
    assert "\n" not in caught.value.message


def test_what_llama_cpp_ignores_of_yarn_is_not_read(tmp_path: Path) -> None:
    pytest.importorskip("llama_cpp")
    model = build(tmp_path / "m", "llama", {"rope_parameters": {**_YARN, **_THETA}})
    write_model(tmp_path / "m", tmp_path / "a.gguf")
    names = ("yarn_attn_factor", "yarn_ext_factor", "yarn_beta_fast", "yarn_beta_slow")
    ignored = {f"llama.rope.scaling.{name}": 3.0 for name in names}
    path, sequence = altered(tmp_path / "a.gguf", ignored), tokens(1, 24)
    with torch.no_grad():
        expected = model(sequence).logits
    found = llama_cpp_logits(path, sequence[0].tolist())
    torch.testing.assert_close(found, expected[0], rtol=0, atol=1e-4)
    back = load(view(tmp_path / "v", path)).logits(sequence)
    torch.testing.assert_close(back, expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("family", ["llama", "gemma3_text"])
def test_attention_factors_that_transformers_has_no_place_for(tmp_path: Path, family: str) -> None:
    yarn = family == "gemma3_text"  # where they are for some blocks only
    build(tmp_path / "m", family, {"tie_word_embeddings": True})
    write_model(tmp_path / "m", tmp_path / "a.gguf")
    arch = GGUF_FAMILIES[family].architecture
    values = {"attn_factor": 0.5, **({"type": "yarn", "factor": 4.0} if yarn else {})}
    path = altered(tmp_path / "a.gguf", {f"{arch}.rope.scaling.{k}": v for k, v in values.items()})
    with pytest.raises(RequestError, match=r"rope\.scaling\.attn_factor = 0\.5, which cannot be"):
        hf_config(read_gguf(path))


def test_biases_that_autogptq_adds_are_left_out(tmp_path: Path) -> None:
    build(tmp_path / "m", "qwen3", {})
    contents = read_contents(tmp_path / "m")
    weight = "model.layers.0.self_attn.o_proj.weight"
    layout = Layout(grid="int4", group_size=32, symmetric=True)
    quantized = {
        **contents.tensors,
        weight: replace(contents.tensors[weight], layout=layout),
        weight.replace("weight", "bias"): LogicalTensor("", (64,), 128),
    }
    found = placements(contents.naming, contents.config, quantized, tied=False)
    assert "blk.0.attn_output.bias" not in [place.name for place in found]
    config = {**contents.config, "attention_bias": True}
    with pytest.raises(RequestError, match=r"no place for tensor model.*o_proj\.bias"):
        placements(contents.naming, config, quantized, tied=False)


def test_a_window_limits_the_context_where_llama_cpp_has_none(tmp_path: Path) -> None:
    save(tmp_path / "m", "mistral", sliding_window=16)
    write_model(tmp_path / "m", tmp_path / "a.gguf")
    assert read_gguf(tmp_path / "a.gguf").metadata["llama.context_length"] == 16


def test_every_family_is_known_or_refused() -> None:
    assert set(GGUF_FAMILIES) < set(FAMILIES)
    with pytest.raises(RequestError, match="gpt_oss"):
        gguf_family("gpt_oss")
