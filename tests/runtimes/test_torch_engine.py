"""The engine against transformers itself, for every family, plain and quantized."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import GenerationConfig

from llmopt.errors import RequestError
from llmopt.runtimes.base import Sampling
from llmopt.runtimes.torch import load
from tests import models
from tests.runtimes.conftest import Quantize

FAMILIES = list(models.FAMILY_SETTINGS)


def greedy(model: nn.Module, prompt: Tensor, count: int) -> list[int]:
    """transformers' own greedy continuation, without cache or generation settings."""
    tokens = prompt[None]
    for _ in range(count):
        with torch.inference_mode():
            best = model(input_ids=tokens, use_cache=False).logits[:, -1:].argmax(-1)
        tokens = torch.cat([tokens, best], dim=1)
    return tokens[0, len(prompt) :].tolist()


@pytest.mark.parametrize("family", FAMILIES)
def test_plain_model_is_transformers_own(family: str, tmp_path: Path) -> None:
    model = models.save(tmp_path, family)
    engine = load(tmp_path, dtype="float32")
    tokens = models.tokens(2, 12)
    with torch.inference_mode():
        expected = model(input_ids=tokens).logits
    found = engine.logits(tokens)
    assert found.dtype == torch.float32
    assert found.shape == (2, 12, engine.vocabulary)
    assert torch.allclose(found, expected, rtol=1e-4, atol=1e-4)
    stream = engine.generate(tokens[0, :6].tolist(), 10, ignore_end=True)
    assert list(stream) == greedy(model, tokens[0, :6], 10)


@pytest.mark.parametrize("family", FAMILIES)
def test_quantized_model_computes_the_decoded_function(family: str, quantize: Quantize) -> None:
    folder, model = quantize(family)
    engine = load(folder, dtype="float32")
    tokens = models.tokens(2, 12)
    with torch.inference_mode():
        expected = model(input_ids=tokens).logits
    assert torch.allclose(engine.logits(tokens), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("act_order", [False, True])
@pytest.mark.parametrize("version", ["gptq", "gptq_v2"])
def test_every_layout_and_generation_near_it(
    bits: int, act_order: bool, version: str, quantize: Quantize
) -> None:
    folder, model = quantize(bits=bits, act_order=act_order, version=version)
    engine = load(folder, dtype="float32", decode="once" if act_order else "each")
    tokens = models.tokens(2, 12)
    with torch.inference_mode():
        expected = model(input_ids=tokens).logits
    assert torch.allclose(engine.logits(tokens), expected, rtol=1e-4, atol=1e-4)
    prompt, text = tokens[0, :5].tolist(), []
    for token in engine.generate(prompt, 6, ignore_end=True):
        with torch.inference_mode():
            scores = model(input_ids=torch.tensor([prompt + text])).logits[0, -1]
        # bfloat16 products may prefer another token only where the two are nearly equal
        assert scores.max() - scores[token] < 0.05 * scores.std()
        text.append(token)
    assert torch.allclose(engine.logits(tokens), expected, rtol=1e-4, atol=1e-4)


def test_bfloat16_is_near_and_halves_the_memory(tmp_path: Path) -> None:
    model = models.save(tmp_path)
    engine, half = load(tmp_path, dtype="float32"), load(tmp_path, dtype="bfloat16")
    assert half.weight_bytes * 2 == engine.weight_bytes
    assert engine.weight_bytes == 4 * sum(p.numel() for p in model.parameters())
    tokens = models.tokens(2, 12)
    assert half.logits(tokens).dtype == torch.float32
    assert (half.logits(tokens) - engine.logits(tokens)).std() < 0.1 * engine.logits(tokens).std()


def test_codes_stay_packed_unless_decoded_once(quantize: Quantize) -> None:
    folder, model = quantize(tie_word_embeddings=True)
    stored = sum(
        t.numel() * t.element_size() for t in load_file(folder / "model.safetensors").values()
    )
    packed, once = load(folder, dtype="float32"), load(folder, dtype="float32", decode="once")
    linear = sum(
        m.weight.numel()
        for m in model.model.layers.modules()
        if hasattr(m, "weight") and m.weight.ndim == 2
    )
    assert packed.weight_bytes <= stored
    assert once.weight_bytes == packed.weight_bytes + 4 * linear
    assert torch.equal(once.logits(models.tokens()), packed.logits(models.tokens()))


def test_streaming_stops_at_end_tokens_and_at_the_context(tmp_path: Path) -> None:
    model = models.save(tmp_path)
    prompt = models.tokens()[0, :6]
    expected = greedy(model, prompt, 8)
    end = next(t for t in expected[1:] if t != expected[0])
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": [95, end]}))
    engine = load(tmp_path, dtype="float32")
    assert list(engine.generate(prompt.tolist(), 8)) == expected[: expected.index(end)]
    assert list(engine.generate(prompt.tolist(), 8, ignore_end=True)) == expected
    assert len(list(engine.generate(prompt.tolist(), 500, ignore_end=True))) == 64 - 6
    (tmp_path / "generation_config.json").unlink()
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "eos_token_id": end}))
    assert (
        list(load(tmp_path, dtype="float32").generate(prompt.tolist(), 8))
        == expected[: expected.index(end)]
    )


def test_sampling_is_seeded_and_follows_the_temperature(tmp_path: Path) -> None:
    models.save(tmp_path)
    engine = load(tmp_path, dtype="float32")

    def sample(temperature: float, seed: int) -> list[int]:
        sampling = Sampling(temperature=temperature, seed=seed)
        return list(engine.generate([3, 4, 5], 20, sampling=sampling, ignore_end=True))

    assert sample(1.0, 1) == sample(1.0, 1)
    assert sample(1.0, 1) != sample(1.0, 2)
    assert sample(1e-4, 1) == sample(0.0, 7)


@pytest.mark.parametrize(
    "settings",
    [
        {"repetition_penalty": 1.7},
        {"temperature": 2.0, "top_k": 1},
        {"temperature": 2.0, "top_p": 1e-6},
        {"temperature": 2.0, "min_p": 0.999},
        {"beams": 3},
        {"beams": 2, "repetition_penalty": 1.3},
    ],
)
def test_tokens_are_chosen_as_transformers_chooses_them(
    settings: dict[str, Any], tmp_path: Path
) -> None:
    model: Any = models.save(tmp_path)
    prompt, end = models.tokens(1, 6), 7
    names = {"beams": "num_beams"}
    config = GenerationConfig(
        max_new_tokens=12, do_sample="temperature" in settings, eos_token_id=end, pad_token_id=end,
        **({"top_k": 0} | {names.get(key, key): value for key, value in settings.items()}),
    )  # fmt: skip
    model.generation_config = GenerationConfig()
    (expected,) = model.generate(
        prompt, attention_mask=torch.ones_like(prompt), generation_config=config
    )
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": end}))
    engine = load(tmp_path, dtype="float32")
    found = list(engine.generate(prompt[0].tolist(), 12, sampling=Sampling(**settings)))
    wanted = expected[6:].tolist()
    assert found == (wanted[: wanted.index(end)] if end in wanted else wanted)


def test_what_is_cut_off_is_not_drawn(tmp_path: Path) -> None:
    models.save(tmp_path)
    engine = load(tmp_path, dtype="float32")
    scores = engine.logits(torch.tensor([[3, 4, 5]]))[0, -1]
    likeliest = set(scores.topk(4).indices.tolist())
    firsts = {
        next(engine.generate([3, 4, 5], 1, sampling=Sampling(50.0, top_k=4, seed=seed)))
        for seed in range(60)
    }
    assert firsts == likeliest


def test_logits_between_steps_of_a_stream_stay_exact(quantize: Quantize) -> None:
    folder, _ = quantize()
    engine = load(folder, dtype="float32")
    tokens = models.tokens()
    before = engine.logits(tokens)
    stream = engine.generate([3, 4], 5, ignore_end=True)
    next(stream)
    assert torch.equal(engine.logits(tokens), before)


@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        ([], "empty prompt"),
        ([96], "token id 96 is outside"),
        ([-1], "token id -1 is outside"),
        ([1] * 65, "65 tokens do not fit"),
    ],
)
def test_unusable_prompts_are_refused_at_once(
    prompt: list[int], message: str, tmp_path: Path
) -> None:
    models.save(tmp_path)
    with pytest.raises(RequestError, match=message):
        load(tmp_path).generate(prompt, 3)


def _change(folder: Path, name: str, value: Tensor | None) -> None:
    stored = load_file(folder / "model.safetensors")
    stored.pop(name, None)
    if value is not None:
        stored[name] = value
    save_file(stored, folder / "model.safetensors", metadata={"format": "pt"})


def test_a_missing_tensor_is_named(tmp_path: Path) -> None:
    models.save(tmp_path)
    _change(tmp_path, "model.layers.1.mlp.up_proj.weight", None)
    with pytest.raises(RequestError, match=r"no tensor model\.layers\.1\.mlp\.up_proj\.weight"):
        load(tmp_path)


def test_a_missing_head_is_an_error_unless_it_is_tied(tmp_path: Path) -> None:
    models.save(tmp_path, "qwen3", tie_word_embeddings=False)
    _change(tmp_path, "lm_head.weight", None)
    with pytest.raises(RequestError, match=r"no tensor lm_head\.weight"):
        load(tmp_path)


def test_a_tensor_of_the_wrong_shape_is_named(tmp_path: Path) -> None:
    models.save(tmp_path)
    _change(tmp_path, "model.layers.0.mlp.up_proj.weight", torch.zeros(64, 31))
    with pytest.raises(RequestError, match=r"up_proj\.weight has the shape \[64, 31\].*\[96, 64\]"):
        load(tmp_path)


def test_a_tensor_without_a_place_is_named_and_other_parts_are_listed(tmp_path: Path) -> None:
    models.save(tmp_path)
    _change(tmp_path, "vision_tower.patch.weight", torch.zeros(3))
    _change(tmp_path, "model.layers.0.self_attn.rotary_emb.inv_freq", torch.zeros(4))
    assert load(tmp_path).unused == ("vision_tower.patch.weight",)
    _change(tmp_path, "model.layers.0.mlp.extra_proj.weight", torch.zeros(3))
    with pytest.raises(RequestError, match=r"model\.layers\.0\.mlp\.extra_proj\.weight"):
        load(tmp_path)


def test_a_quantized_linear_of_the_wrong_shape_is_named(quantize: Quantize) -> None:
    folder, _ = quantize()
    stored = load_file(folder / "model.safetensors")
    for suffix in ("qweight", "qzeros", "scales", "g_idx"):
        stored[f"model.layers.0.mlp.up_proj.{suffix}"] = stored[
            f"model.layers.0.mlp.down_proj.{suffix}"
        ].clone()
    save_file(stored, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(
        RequestError, match=r"layers\.0\.mlp\.up_proj\.weight has the shape \[64, 96\]"
    ):
        load(folder)


def test_another_quantization_is_refused(tmp_path: Path) -> None:
    models.save(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "quip", "bits": 4}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(RequestError, match="quip"):
        load(tmp_path)
