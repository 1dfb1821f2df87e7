"""llama.cpp as an engine, against transformers on the same weights."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import gguf
import pytest
import torch
from torch import nn

from llmopt.errors import LlmoptError, MissingDependency, RequestError
from llmopt.runtimes import llamacpp
from llmopt.runtimes import torch as torch_runtime
from llmopt.runtimes.base import Sampling
from llmopt.runtimes.llamacpp.native import Native
from tests import models

pytest.importorskip("llama_cpp")

END = 2
#: Hugging Face's names within a block -> GGUF's
_NAMES = {
    "input_layernorm": "attn_norm", "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v", "self_attn.o_proj": "attn_output",
    "post_attention_layernorm": "ffn_norm", "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}  # fmt: skip


def gguf_name(name: str) -> str:
    parts = name.removeprefix("model.").split(".")
    if parts[0] == "layers":
        return f"blk.{parts[1]}.{_NAMES['.'.join(parts[2:-1])]}.{parts[-1]}"
    stem = {"embed_tokens": "token_embd", "norm": "output_norm", "lm_head": "output"}[parts[0]]
    return f"{stem}.{parts[-1]}"


def write(model: nn.Module, path: Path, *, without: str = "") -> Path:
    """A tiny Qwen 2 as GGUF, in float32: this family's rows stay in their order."""
    config: Any = model.config
    writer = gguf.GGUFWriter(path, "qwen2")
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_tokenizer_model("llama")
    writer.add_token_list([f"<{i}>" for i in range(config.vocab_size)])
    writer.add_token_scores([0.0] * config.vocab_size)
    writer.add_token_types([1] * config.vocab_size)
    writer.add_eos_token_id(END)
    for name, value in model.state_dict().items():
        if gguf_name(name) != without:
            writer.add_tensor(gguf_name(name), value.numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, nn.Module]:
    """A folder with a GGUF file, and the same model as safetensors in hf."""
    folder = tmp_path_factory.mktemp("model")
    model = models.save(folder / "hf", "qwen2")
    write(model, folder / "model.gguf")
    return folder, model


@pytest.fixture(scope="module")
def engine(saved: tuple[Path, nn.Module]) -> llamacpp.LlamaCppEngine:
    return llamacpp.load(saved[0], device="cpu", threads=1)


def test_logits_are_transformers_own(
    saved: tuple[Path, nn.Module], engine: llamacpp.LlamaCppEngine
) -> None:
    for length in (12, 5, 64):
        tokens = models.tokens(2, length)
        with torch.inference_mode():
            expected = saved[1](input_ids=tokens).logits
        found = engine.logits(tokens)
        assert found.dtype == torch.float32
        assert found.shape == (2, length, engine.vocabulary)
        assert torch.allclose(found, expected, rtol=1e-4, atol=1e-4)


def test_what_it_says_of_the_model(
    saved: tuple[Path, nn.Module], engine: llamacpp.LlamaCppEngine
) -> None:
    assert engine.vocabulary == 96
    assert engine.context == 64
    assert engine.weight_bytes == sum(value.nbytes for value in saved[1].state_dict().values())


@pytest.mark.parametrize(
    "sampling",
    [
        Sampling(),
        Sampling(temperature=0.8, seed=3),
        Sampling(temperature=5.0, seed=4, top_k=20, top_p=0.9, min_p=0.01, repetition_penalty=1.2),
    ],
)
def test_it_generates_what_the_torch_engine_does(
    saved: tuple[Path, nn.Module], engine: llamacpp.LlamaCppEngine, sampling: Sampling
) -> None:
    other = torch_runtime.load(saved[0] / "hf", dtype="float32")
    prompt = models.tokens(1, 9)[0].tolist()
    ours, theirs = (
        list(e.generate(prompt, 20, sampling=sampling, ignore_end=True)) for e in (engine, other)
    )
    assert ours == theirs
    assert len(ours) == 20


def test_a_full_context_and_an_end_token_end_a_stream(engine: llamacpp.LlamaCppEngine) -> None:
    prompt = models.tokens(1, 60)[0].tolist()
    assert len(list(engine.generate(prompt, 50, ignore_end=True))) == 4
    for seed in range(200):
        settings: dict[str, Any] = {"sampling": Sampling(temperature=50.0, seed=seed)}
        free = list(engine.generate(prompt[:8], 40, ignore_end=True, **settings))
        if END in free:
            cut = free[: free.index(END)]
            assert list(engine.generate(prompt[:8], 40, **settings)) == cut
            return
    pytest.fail("no stream met the end token")


def test_streams_and_logits_do_not_disturb_each_other(engine: llamacpp.LlamaCppEngine) -> None:
    first, second = models.tokens(2, 6).tolist()
    alone = [list(engine.generate(prompt, 8, ignore_end=True)) for prompt in (first, second)]
    before = engine.logits(models.tokens(2, 10))
    one = engine.generate(first, 8, ignore_end=True)
    other = engine.generate(second, 8, ignore_end=True)
    mixed = list(zip(one, other, strict=True))
    assert [list(column) for column in zip(*mixed, strict=True)] == alone
    assert torch.equal(engine.logits(models.tokens(2, 10)), before)


def test_a_long_prompt_is_read_in_batches(tmp_path: Path) -> None:
    model = models.save(tmp_path, "qwen2", max_position_embeddings=1200)
    engine = llamacpp.load(write(model, tmp_path / "long.gguf"), device="cpu", threads=1)
    prompt = models.tokens(1, 1100)
    (token,) = engine.generate(prompt[0].tolist(), 1, ignore_end=True)
    with torch.inference_mode():
        assert token == int(model(input_ids=prompt).logits[0, -1].argmax())


def test_what_cannot_be_asked(engine: llamacpp.LlamaCppEngine) -> None:
    with pytest.raises(RequestError, match="65 tokens do not fit the model's context of 64"):
        engine.logits(models.tokens(1, 65))
    with pytest.raises(RequestError, match="token id 96 is outside the model's vocabulary of 96"):
        engine.logits(torch.tensor([[96]]))
    with pytest.raises(RequestError, match="empty prompt"):
        engine.generate([], 1)
    with pytest.raises(RequestError, match="no beam search"):
        engine.generate([1], 1, sampling=Sampling(beams=2))


def test_a_file_that_cannot_be_loaded_is_one_sentence(
    saved: tuple[Path, nn.Module], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    torn = tmp_path / "torn.gguf"
    torn.write_bytes((saved[0] / "model.gguf").read_bytes()[:-1000])
    with pytest.raises(RequestError, match=r"torn\.gguf is truncated"):
        llamacpp.load(torn)
    lacking = write(saved[1], tmp_path / "lacking.gguf", without="blk.1.ffn_up.weight")
    with pytest.raises(LlmoptError, match=r"cannot load lacking\.gguf: .*blk\.1\.ffn_up\.weight"):
        llamacpp.load(lacking, device="cpu")
    llamacpp.load(saved[0], device="cpu").logits(models.tokens(1, 4))
    assert capfd.readouterr() == ("", "")


def test_a_folder_without_a_gguf_file(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="holds no GGUF model"):
        llamacpp.load(tmp_path)


def test_a_device_that_is_not_there(
    saved: tuple[Path, nn.Module], monkeypatch: pytest.MonkeyPatch
) -> None:
    import llama_cpp

    monkeypatch.setattr(llama_cpp, "llama_supports_gpu_offload", lambda: False)
    with pytest.raises(RequestError, match="built without GPU support"):
        llamacpp.load(saved[0], device="cuda")


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "llama_cpp", None)
    with pytest.raises(MissingDependency, match="llama_cpp") as caught:
        Native()
    assert caught.value.hint == 'pip install "llmopt[llamacpp]"'
