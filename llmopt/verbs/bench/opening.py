"""How a bench opens the models that it measures: whole, or to be walked a block at a time."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from llmopt.artifact import Artifact
from llmopt.evaluate.lockstep import Lockstep
from llmopt.evaluate.streamed import EngineScores, Scores, StreamedScores
from llmopt.formats.checkpoint import Checkpoint
from llmopt.runtimes.base import Engine
from llmopt.runtimes.choice import open_engine
from llmopt.runtimes.device import Dtype, computing_dtype, pick_device
from llmopt.specs import RUNTIMES
from llmopt.step import Work
from llmopt.verbs.bench.settings import Benchmark


class Engines:
    """Opens models; the base, which every other runs beside, once."""

    def __init__(self, work: Work, base: Artifact | None) -> None:
        self._work, self._base = work, base
        self._of_base: Engine | None = None

    def open(self, model: Artifact) -> Engine:
        """A model in the runtime that the step chose for it."""
        if self._base is None or model.name != self._base.name:
            return self._load(model)
        if self._of_base is None:
            self._of_base = self._load(model)
        return self._of_base

    def _load(self, model: Artifact) -> Engine:
        runtime = self._work.asked(Benchmark).runtimes[model.name]
        device, dtype = opening(self._work, runtime)
        return open_engine(runtime, model.path, device=device, dtype=dtype)


def opening(work: Work, runtime: str) -> tuple[str, Dtype]:
    """The device and dtype that a runtime opens models with."""
    if not RUNTIMES[runtime].chooses_dtype:
        return work.options.device, "auto"
    device = pick_device(work.options.device)
    # quality is that of the stored numbers: on the CPU nothing is rounded on the way
    return device, "float32" if device == "cpu" else "auto"


def in_lockstep(
    work: Work, base: Artifact | None, others: Sequence[Artifact], windows: Tensor, engines: Engines
) -> Lockstep:
    """Compare the models a block at a time, but for those that only an engine of theirs runs.

    Each of those stands beside the base by itself, so that one is held at a time.
    """
    runtimes, folder = work.asked(Benchmark).runtimes, work.state / "lockstep"
    streamed = [model for model in others if RUNTIMES[runtimes[model.name]].by_blocks]
    groups = [[model] for model in others]
    if base is not None:
        alone = [[model] for model in others if model not in streamed]
        found = [group for group in (streamed, *alone) if group]
        groups = [[base, *group] for group in found] or [[base]]
    names = [each.name for each in (base, *others) if each is not None]

    def opens(model: Artifact) -> Scores:
        runtime = runtimes[model.name]
        if not RUNTIMES[runtime].by_blocks:
            return EngineScores(engines.open(model), windows)
        name, dtype = opening(work, runtime)
        checkpoint, device = Checkpoint.open(model.path), torch.device(name)
        return StreamedScores(
            checkpoint, windows, folder / f"model-{names.index(model.name)}",
            dtype=computing_dtype(dtype, checkpoint.dense_dtype, device), device=device,
            in_file=work.step.arrangement.activations_in_file,
        )  # fmt: skip

    return Lockstep(
        groups, windows, opens, folder,
        device=torch.device(pick_device(work.options.device)), seed=work.step.seed,
        progress=work.progress,
    )  # fmt: skip
