"""Models a block at a time against the same models as a whole."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from llmopt.artifact import Artifact, open_artifact
from llmopt.evaluate import divergence, lockstep
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
        self.base, self.text = base, windows() if text is None else text
        apart = [[model] for model in others if base is None or model.name in whole]
        groups = [[model for model in others if [model] not in apart], *apart]
        if base is not None:
            groups = [[base, *group] for group in groups if group]
        self.lockstep = Lockstep(
            [group for group in groups if group] or [[base]], self.text, self.opens, folder,
            device=CPU, seed=0, progress=lambda *told: self.told.append(told),
        )  # fmt: skip

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
    monkeypatch.setattr(lockstep, "_MOST_TOKENS", 13)
    monkeypatch.setattr(lockstep, "_POSITIONS", 10)
    bench = Bench(tmp_path / "state", None, base)
    assert_same(bench.found(base).metrics, whole(base, None).metrics)
    assert bench.told[-1] == ("slices of the vocabulary", 8, 8)
