"""`llmopt generate`: what it prints, and what it refuses before it prints anything."""

from __future__ import annotations

import io
import json
import sys
from pathlib import Path

import pytest
import torch
from tokenizers import Regex, Tokenizer, pre_tokenizers

from llmopt.pretrained import tokenizer_of
from tests import models
from tests.cli.conftest import Llmopt
from tests.corpora.test_detokenize import sentencepiece

CPU = ("--device", "cpu")


@pytest.fixture
def spaced(tmp_path: Path) -> Path:
    """A random model with a tokenizer that joins spaces to words."""
    folder = sentencepiece(tmp_path / "model", prepend=True)
    vocabulary = len(tokenizer_of(folder))
    models.save(folder, vocab_size=vocabulary, eos_token_id=None)
    return folder


@pytest.mark.parametrize("temperature", [0, 2])
def test_what_is_streamed_is_the_whole_decoded_at_once(
    llmopt: Llmopt, spaced: Path, temperature: int
) -> None:
    ask = ("generate", spaced, "-p", "it was here", "-n", 40, "--temperature", temperature, *CPU)
    found, streamed = llmopt(*ask, "--json").document, llmopt(*ask).out
    tokenizer = tokenizer_of(spaced)
    prompt = tokenizer("it was here")["input_ids"]
    whole = tokenizer.decode(prompt + found["tokens"], skip_special_tokens=True)
    assert streamed == whole + "\n"
    assert found["prompt"] + found["completion"] == whole
    assert found["finish_reason"] == "length"
    assert found["prompt_tokens"] == len(prompt)
    assert len(found["tokens"]) == 40


def test_both_runtimes_print_the_same(llmopt: Llmopt, tmp_path: Path) -> None:
    pytest.importorskip("llama_cpp")
    models.save_with_bytes(tmp_path / "model", "qwen2", eos_token_id=None)
    llmopt("convert", "model", "-o", "model.gguf", "--to", "gguf:F32")
    ask = ("-p", "é", "-n", 8, "--repetition-penalty", 1.3, *CPU)
    first, second = (llmopt("generate", name, *ask) for name in ("model", "model.gguf"))
    assert (first.code, second.code) == (0, 0)
    assert first.out == second.out
    refused = llmopt("generate", "model.gguf", *ask, "--beams", 2)
    assert (refused.code, refused.out) == (2, "")
    assert "llama.cpp has no beam search" in refused.err


def test_it_ends_before_a_stop_string(llmopt: Llmopt, tmp_path: Path) -> None:
    models.save_with_tokenizer(tmp_path / "model")
    ask = ("generate", "model", "-p", "jump", "-n", 30, *CPU)
    free = llmopt(*ask, "--json").document["completion"]
    stop = free[3:6]
    found = llmopt(*ask, "--json", "--stop", "never so", "--stop", stop).document
    assert found["completion"] == free[: free.index(stop)]
    assert (found["finish_reason"], found["stop"]) == ("stop", stop)
    assert llmopt(*ask, "--stop", stop).out == "jump" + found["completion"] + "\n"


def test_an_end_token_and_a_full_context_end_it(llmopt: Llmopt, tmp_path: Path) -> None:
    models.save_with_tokenizer(tmp_path / "model", eos_token_id=None)
    ask = ("generate", "model", "-p", "jump", "--json", *CPU)
    full = llmopt(*ask)
    assert full.document["finish_reason"] == "context"
    assert len(full.document["tokens"]) == 60
    assert "the model's context of 64 tokens is full" in full.err
    tokens = full.document["tokens"]
    end = next(token for token in tokens if token != tokens[0])
    (tmp_path / "model" / "generation_config.json").write_text(json.dumps({"eos_token_id": end}))
    ended = llmopt(*ask).document
    assert ended["tokens"] == tokens[: tokens.index(end)]
    assert (ended["finish_reason"], ended["stop"]) == ("stop", None)
    beams = llmopt(*ask, "--beams", 2, "-n", 5)
    assert beams.code == 0
    assert len(beams.document["tokens"]) <= 5


REFUSED: dict[str, tuple[tuple[object, ...], str]] = {
    "top-k without a temperature": (("--top-k", 5), "--top-k says what is drawn from"),
    "top-p without a temperature": (("--top-p", 0.5), "--top-p says what is drawn from"),
    "min-p without a temperature": (("--min-p", 0.5), "--min-p says what is drawn from"),
    "beams that draw": (("--beams", 2, "--temperature", 1), "--beams searches"),
    "beams that stop": (("--beams", 2, "--stop", "x"), "not at --stop"),
    "an empty stop": (("--stop", ""), "an empty --stop"),
    "no number": (("--temperature", "inf"), "finite numbers"),
    "more than the context": (("-n", 61), "4 tokens of prompt and 61 new ones do not fit"),
    "a prompt as long as the context": (("-p", "x" * 64), "has no room for one more"),
    "a prompt longer than the context": (("-p", "x" * 65), "has no room for one more"),
    "an empty prompt": (("-p", ""), "the prompt is empty"),
    "half a character": (("-p", "\udcff"), "not UTF-8"),
    "no such device": (("--device", "tpu"), "unknown device"),
    "no such dtype": (("--dtype", "int3"), "unknown dtype 'int3'"),
    "no such runtime": (("--runtime", "vllm"), "vllm does not run"),
    "an id beyond the rows": (("-p", "|}~"), "outside the model's vocabulary of 64"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_refused_is_refused_before_the_prompt(
    llmopt: Llmopt, tmp_path: Path, case: str
) -> None:
    models.save_with_tokenizer(tmp_path / "model", vocab_size=64)
    more, says = REFUSED[case]
    device = () if "--device" in more else CPU
    done = llmopt("generate", "model", "-p", "5+5=", *device, *more)
    assert (done.code, done.out) == (2, ""), done.err
    assert says in done.err
    assert done.err.count("error: ") == 1
    document = llmopt("generate", "model", "-p", "5+5=", *device, *more, "--json").document
    assert says in document["error"]["message"]


def test_a_folder_without_a_tokenizer(llmopt: Llmopt, tmp_path: Path) -> None:
    models.save(tmp_path / "model")
    done = llmopt("generate", "model", "-p", "x", *CPU)
    assert (done.code, done.out) == (2, "")
    assert "no tokenizer" in done.err


@pytest.mark.parametrize(("given", "code"), [(b"jump", 0), (b"\xff", 2), (None, 2)])
def test_a_prompt_on_standard_input(
    llmopt: Llmopt,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    given: bytes | None,
    code: int,
) -> None:
    models.save_with_tokenizer(tmp_path / "model")
    stream = None if given is None else io.TextIOWrapper(io.BytesIO(given), encoding="utf-8")
    monkeypatch.setattr(sys, "stdin", stream)
    done = llmopt("generate", "model", "-p", "-", "-n", 3, *CPU)
    assert done.code == code
    assert done.out.startswith("jump") == (code == 0)


def test_a_prompt_that_the_tokenizer_fails_on(llmopt: Llmopt, tmp_path: Path) -> None:
    models.save_with_tokenizer(tmp_path / "model")
    path = str(tmp_path / "model" / "tokenizer.json")
    tokenizer = Tokenizer.from_file(path)
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex("(a|a)*$"), "isolated")
    tokenizer.save(path)
    done = llmopt("generate", "model", "-p", "a" * 40 + "b", *CPU)
    assert (done.code, done.out) == (2, "")
    assert "model: the tokenizer fails on the prompt (" in done.err
    assert "Traceback" not in done.err


@pytest.mark.parametrize("sampling", [(), ("--temperature", 1), ("--beams", 2)])
def test_a_model_that_computes_nan(
    llmopt: Llmopt, tmp_path: Path, sampling: tuple[object, ...]
) -> None:
    """Its weights are finite, and their products are not."""
    model = models.save_with_tokenizer(tmp_path / "model")
    with torch.no_grad():
        for weight in model.parameters():
            weight.fill_(3e38)
    model.save_pretrained(tmp_path / "model")
    done = llmopt("generate", "model", "-p", "jump", *sampling, *CPU)
    assert (done.code, done.out) == (1, "")
    assert "the model computes NaN, of which no token can be chosen" in done.err
