"""A changed model's divergence, a block and a slice of the head at a time."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from llmopt.blockwalk import head
from llmopt.evaluate.held_out import HeldOut
from llmopt.evaluate.positions import kl_divergence
from llmopt.formats.checkpoint import Checkpoint
from tests import models


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma2", "opt"])
def test_divergence_is_that_of_the_whole_models(
    tmp_path: Path, family: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(head, "HEAD_TOKENS", 40)
    settings = {"final_logit_softcapping": 5.0} if family == "gemma2" else {}
    model = models.save(tmp_path / "model", family, **settings)
    checkpoint, rows = Checkpoint.open(tmp_path / "model"), models.tokens(3, 12)
    held_out = HeldOut(checkpoint, rows, batch_size=2)
    assert held_out.measure(lambda _: None) == [0.0, 0.0, 0.0]
    name = checkpoint.naming.linears(1)[0][0]
    module = dict(model.named_modules())[name]
    before = model(input_ids=rows).logits[:, :-1].log_softmax(-1)
    changed = (module.weight * 1.1).detach()
    module.weight.data = changed
    after = model(input_ids=rows).logits[:, :-1].log_softmax(-1)
    oriented = changed.T if checkpoint.family.conv1d else changed
    found = held_out.measure(lambda asked: oriented if asked == name else None)
    expected = kl_divergence(before, after).mean(-1)
    torch.testing.assert_close(torch.tensor(found).double(), expected, rtol=1e-3, atol=1e-9)
