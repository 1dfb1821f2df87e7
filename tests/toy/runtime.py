"""An engine for toy files: torch's, told that they are safetensors."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

from torch import Tensor

from llmopt.runtimes import torch
from llmopt.runtimes.base import GREEDY, Engine, Sampling
from llmopt.runtimes.device import Dtype


class ToyEngine:
    """llmopt.runtimes.base.Engine."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self.vocabulary, self.context = engine.vocabulary, engine.context
        self.weight_bytes = engine.weight_bytes

    def logits(self, tokens: Tensor) -> Tensor:
        return self._engine.logits(tokens)

    def generate(
        self,
        prompt: list[int],
        max_new_tokens: int,
        *,
        sampling: Sampling = GREEDY,
        ignore_end: bool = False,
    ) -> Iterator[int]:
        return self._engine.generate(
            prompt, max_new_tokens, sampling=sampling, ignore_end=ignore_end
        )


def load(folder: Path, *, device: str = "cpu", dtype: Dtype = "auto") -> ToyEngine:
    """Load the toy file in a folder."""
    with tempfile.TemporaryDirectory() as name:
        for path in folder.iterdir():
            called = "model.safetensors" if path.suffix == ".toy" else path.name
            (Path(name) / called).symlink_to(path.resolve())
        return ToyEngine(torch.load(Path(name), device=device, dtype=dtype))
