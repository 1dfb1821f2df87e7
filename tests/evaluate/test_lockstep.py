"""Models a block at a time against the same models as a whole."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from llmopt.artifact import Artifact, open_artifact
from llmopt.blockwalk import head
from llmopt.errors import LlmoptError, RequestError
from llmopt.evaluate import divergence, lockstep, streamed
from llmopt.evaluate.lockstep import Lockstep
from llmopt.evaluate.probe import Reading, Subject
from llmopt.evaluate.streamed import EngineScores, Scores, StreamedScores
from llmopt.formats.checkpoint import Checkpoint
from llmopt.runtimes.base import Engine
from llmopt.runtimes.choice import open_engine
from llmopt.specs.metrics import Metrics, ends_of, value_of
from tests import models
from tests.verbs.conftest import HELD_OUT, TEXT, quantized

CPU = torch.device("cpu")
FAMILIES = sorted(models.FAMILY_SETTINGS)


def windows(count: int = 3, length: int = 24) -> torch.Tensor:
    return models.tokens(count, length, vocabulary=90, seed=7)


def engine(model: Artifact) -> Engine:
    return open_engine("torch", model.path, device="cpu", dtype="float32")


class Bench:
    """A base and others, in lockstep, with what is told of it."""

    def __init__(
        self, folder: Path, base: Artifact | None, *others: Artifact, in_file: bool = False,
        whole: tuple[str, ...] = (), text: torch.Tensor | None = None,
    ) -> None:  # fmt: skip
        self.folder, self.told, self.in_file, self.whole = folder, list[Any](), in_file, whole
        self.until: int | None = None
        self.known: list[Any] = []  # what was told of before, and need not be again
        self.base, self.text = base, windows() if text is None else text
        apart = [[model] for model in others if base is None or model.name in whole]
        groups = [[model for model in others if [model] not in apart], *apart]
        if base is not None:
            groups = [[base, *group] for group in groups if group]
        self.lockstep = Lockstep(
            [group for group in groups if group] or [[base]], self.text, self.opens, folder,
            device=CPU, seed=0, progress=self.tell,
        )  # fmt: skip

    def tell(self, *told: object) -> None:
        if told[1] and told not in self.known:
            self.told.append(told)
            self.known.append(told)
            if self.until is not None and len(self.told) == self.until:
                raise KeyboardInterrupt

    def opens(self, model: Artifact) -> Scores:
        if model.name in self.whole:
            return EngineScores(engine(model), self.text)
        return StreamedScores(
            Checkpoint.open(model.path), self.text, self.folder / model.name,
            dtype=torch.float32, device=CPU, in_file=self.in_file,
        )  # fmt: skip

    def subject(self, model: Artifact) -> Subject:
        return Subject(
            model=model, base=self.base, open_engine=engine, windows=self.text, seed=0,
            together=self.lockstep.measure,
        )  # fmt: skip

    def found(self, model: Artifact) -> Reading:
        first, last = divergence.measure(self.subject(model))
        assert (first.done, last.done, last.total) == (0, len(self.text), len(self.text))
        return last


def whole(model: Artifact, base: Artifact | None, text: torch.Tensor | None = None) -> Reading:
    text = windows() if text is None else text
    subject = Subject(model=model, base=base, open_engine=engine, windows=text, seed=0)
    return list(divergence.measure(subject))[-1]


def assert_same(found: Metrics, expected: Metrics, tolerance: float = 1e-5) -> None:
    assert found.keys() == expected.keys()
    for name, value in found.items():
        pairs = zip(
            (value_of(value), *ends_of(value)),
            (value_of(expected[name]), *ends_of(expected[name])),
            strict=True,
        )
        relative = name.startswith("perplexity")
        for ours, theirs in pairs:
            assert ours == pytest.approx(
                theirs, rel=tolerance if relative else 0, abs=0 if relative else tolerance
            ), name


@pytest.fixture
def pair(tmp_path: Path) -> Callable[..., tuple[Artifact, ...]]:
    """pair("gpt2", dict(method="rtn"), ...) -> a model, and what was quantized from it."""

    def made(family: str, *asked: dict[str, Any], **settings: Any) -> tuple[Artifact, ...]:
        model = tmp_path / family
        models.save_with_tokenizer(model, family, **settings)
        (tmp_path / "text.txt").write_text(TEXT * 40)
        (tmp_path / "held-out.txt").write_text(HELD_OUT * 20)
        found = [open_artifact("model", model)]
        for number, each in enumerate(asked):
            folder = tmp_path / f"made-{number}"
            folder.mkdir()
            for name in ("text.txt", "held-out.txt"):
                (folder / name).symlink_to(tmp_path / name)
            artifact = quantized(folder, model, **each)
            found.append(open_artifact(f"q{number}", artifact.path))
        return tuple(found)

    return made


@pytest.mark.parametrize("family", ["llama", "gemma3_text", "qwen3_moe", "gpt2"])
def test_every_metric_is_that_of_the_whole_models(
    tmp_path: Path, pair: Callable[..., tuple[Artifact, ...]], family: str
) -> None:
    base, *made = pair(family, {"method": "gptq"}, {"method": "rtn", "grid": "int3"})
    plain = tmp_path / "other"
    models.save_with_tokenizer(plain, family, seed=1)
    others = [open_artifact("plain", plain), *made]
    bench = Bench(tmp_path / "state", base, *others)
    for model in others:
        found, expected = bench.found(model), whole(model, base)
        assert_same(found.metrics, expected.metrics)
        assert_same(found.base_metrics, expected.base_metrics)
    blocks = [told for told in bench.told if told[0] == "blocks of model"]
    assert blocks == [("blocks of model", 1, 2), ("blocks of model", 2, 2)]  # the base once


@pytest.mark.parametrize("family", FAMILIES)
def test_a_slice_of_the_head_is_a_part_of_the_logits(
    tmp_path: Path, family: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever the model does with logits, it does with each by itself."""
    settings = {"final_logit_softcapping": 5.0} if family == "gemma2" else {}
    models.save(tmp_path / "model", family, **settings)
    base = open_artifact("model", tmp_path / "model")
    monkeypatch.setattr(head, "HEAD_TOKENS", 13)
    monkeypatch.setattr(lockstep, "HEAD_POSITIONS", 10)
    bench = Bench(tmp_path / "state", None, base)
    assert_same(bench.found(base).metrics, whole(base, None).metrics)
    assert bench.told[-1] == ("slices of the vocabulary", 8, 8)


CT = {"format": "compressed-tensors", "group_size": -1}


@pytest.mark.parametrize(
    "asked",
    [
        {"head": True, "method": "rtn"},
        {**CT, "grid": "int8", "activations": "int8", "head": True},
        {**CT, "grid": "fp8", "activations": "fp8"},
    ],
)
def test_quantized_linears_compute_what_their_engine_does(
    tmp_path: Path, pair: Callable[..., tuple[Artifact, ...]], asked: dict[str, Any]
) -> None:
    """Heads in slices, and inputs that are rounded token by token."""
    base, made = pair("qwen3", asked)
    bench = Bench(tmp_path / "state", base, made, in_file=True)
    assert_same(bench.found(made).metrics, whole(made, base).metrics)


def test_biases_that_the_model_has_no_place_for_are_added(
    tmp_path: Path, pair: Callable[..., tuple[Artifact, ...]]
) -> None:
    base, made = pair("qwen3", {"method": "rtn", "head": True})
    path = made.path / "model.safetensors"
    tensors = load_file(path)
    outputs = {"model.layers.1.mlp.up_proj": 96, "lm_head": 96}
    biases = {f"{name}.bias": torch.linspace(-3, 3, size) for name, size in outputs.items()}
    save_file(tensors | biases, path, {"format": "pt"})
    bench = Bench(tmp_path / "state", base, made)
    expected = whole(made, base).metrics
    assert_same(bench.found(made).metrics, expected)
    save_file(tensors, path, {"format": "pt"})
    assert value_of(whole(made, base).metrics["kl.mean"]) != value_of(expected["kl.mean"])


@pytest.mark.parametrize("apart", [("q0",), ("model",), ("model", "q0", "q1")])
def test_models_that_only_their_engine_runs_stand_beside_streamed_ones(
    tmp_path: Path, pair: Callable[..., tuple[Artifact, ...]], apart: tuple[str, ...]
) -> None:
    base, *made = pair("llama", {"method": "rtn"}, {"method": "rtn", "grid": "int3"})
    bench = Bench(tmp_path / "state", base, *made, whole=apart)
    for model in made:
        assert_same(bench.found(model).metrics, whole(model, base).metrics)


def test_a_killed_evaluation_goes_on_with_the_same_numbers(
    tmp_path: Path, pair: Callable[..., tuple[Artifact, ...]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(head, "HEAD_TOKENS", 40)
    monkeypatch.setattr(streamed, "SAVE_EVERY", 1)
    base, *made = pair("llama", {"method": "rtn"}, {"method": "rtn", "grid": "int3"})
    undisturbed = Bench(tmp_path / "whole", base, *made)
    expected = [undisturbed.found(model).metrics for model in made]
    moments = list(range(1, len(undisturbed.told)))
    assert len(moments) == 3 * 2 + 3 - 1
    told: list[Any] = []
    for moment in moments:
        bench = Bench(tmp_path / "killed", base, *made)
        bench.until, bench.known = 1, told
        with pytest.raises(KeyboardInterrupt):
            bench.found(made[0])
        assert told == undisturbed.told[:moment]  # a step further each time
    for _ in range(2):
        bench = Bench(tmp_path / "killed", base, *made)
        bench.known = told
        assert [bench.found(model).metrics for model in made] == expected
    assert told == undisturbed.told
    assert not bench.told


def test_another_text_starts_anew(tmp_path: Path) -> None:
    models.save(tmp_path / "model", "llama")
    base = open_artifact("model", tmp_path / "model")
    Bench(tmp_path / "state", None, base).found(base)
    other = windows(4, 20)
    bench = Bench(tmp_path / "state", None, base, text=other)
    assert_same(bench.found(base).metrics, whole(base, None, other).metrics)
    assert len(bench.told) == 3


def test_what_cannot_be_compared_is_refused_and_what_broke_down_has_no_number(
    tmp_path: Path,
) -> None:
    models.save(tmp_path / "model", "llama")
    models.save(tmp_path / "wide", "llama", vocab_size=100)
    models.save(tmp_path / "broken", "llama", seed=1)
    path = tmp_path / "broken" / "model.safetensors"
    tensors = load_file(path)
    tensors["model.norm.weight"][3] = torch.nan
    save_file(tensors, path, {"format": "pt"})
    base, wide, broken = (
        open_artifact(name, tmp_path / name) for name in ("model", "wide", "broken")
    )
    with pytest.raises(RequestError, match="96 tokens in the base, 100 in the candidate"):
        Bench(tmp_path / "a", base, wide).found(wide)
    with pytest.raises(RequestError, match="80 tokens do not fit the model's context of 64"):
        Bench(tmp_path / "b", None, base, text=windows(2, 80)).found(base)
    found = Bench(tmp_path / "c", base, broken).found(broken).metrics
    assert math.isnan(value_of(found["kl.mean"]))
    with pytest.raises(LlmoptError, match="base model's logits are not finite"):
        Bench(tmp_path / "d", broken, base).found(base)
