"""Every probe finds what the table declares, under these names, and nothing else.

Those that measure `alone` are in test_alone.py.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch

from llmopt.artifact import Artifact, open_artifact
from llmopt.evaluate.probe import Probe, Reading, Subject
from llmopt.runtimes.base import Engine
from llmopt.runtimes.choice import open_engine
from llmopt.specs import load
from llmopt.specs.metrics import GATE_METRICS, METRICS, PROBES, Interval
from tests import models
from tests.verbs.conftest import HELD_OUT, TEXT, quantized


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[Artifact, Artifact]:
    """A model, and what was quantized from it."""
    folder = tmp_path_factory.mktemp("pair")
    models.save_with_tokenizer(folder / "model", "llama")
    (folder / "text.txt").write_text(TEXT * 40)
    (folder / "held-out.txt").write_text(HELD_OUT * 20)
    made = quantized(folder, folder / "model", method="rtn")
    return open_artifact("model", folder / "model"), made


def opened(model: Artifact) -> Engine:
    return open_engine("torch", model.path, device="cpu", dtype="float32")


def measure(name: str, model: Artifact, base: Artifact | None) -> list[Reading]:
    probe: Probe = load(PROBES[name].module)
    windows = torch.randint(90, (3, 16), generator=torch.Generator().manual_seed(1))
    return list(
        probe.measure(Subject(model=model, base=base, open_engine=opened, windows=windows, seed=0))
    )


@pytest.mark.parametrize("name", [probe.id for probe in PROBES.values() if not probe.alone])
def test_a_probe_finds_what_it_declares(name: str, pair: tuple[Artifact, Artifact]) -> None:
    base, model = pair
    declared = PROBES[name].metrics
    readings = measure(name, model, base)
    assert [reading.final for reading in readings] == [*[False] * (len(readings) - 1), True]
    found = readings[-1].metrics
    assert found.keys() == {metric.name for metric in declared}
    for metric in declared:
        assert isinstance(found[metric.name], Interval) == metric.interval
    alone = {metric.name for metric in declared if not metric.needs_base}
    assert {key for reading in measure(name, model, None) for key in reading.metrics} == alone
    assert readings[-1].base_metrics.keys() <= alone


def test_codes_are_held_to_the_weights_that_they_were_chosen_for_alone(
    pair: tuple[Artifact, Artifact],
) -> None:
    base, model = pair
    assert measure("codes", model, base)
    assert not measure("codes", base, model)
    entry = {**model.manifest["ledger"][0], "actions": ["folded", "quantized"]}
    folded: dict[str, Any] = {**model.manifest, "ledger": [entry]}
    assert not measure("codes", Artifact("q", model.path, model.digest, folded), base)


def test_names_are_declared_once_and_gates_know_them() -> None:
    declared = [metric.name for probe in PROBES.values() for metric in probe.metrics]
    assert sorted(declared) == sorted(METRICS)
    timed = {metric.name for probe in PROBES.values() if probe.alone for metric in probe.metrics}
    assert {metric.name for metric in GATE_METRICS.values()} == set(METRICS) - timed
    assert GATE_METRICS["kl.mean.high"] is METRICS["kl.mean"]
    assert "kl.max.high" not in GATE_METRICS
