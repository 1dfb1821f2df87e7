"""The dtype to compute in."""

from __future__ import annotations

import pytest
import torch

from llmopt import processor
from llmopt.runtimes.device import computing_dtype

HALVES = [torch.bfloat16, torch.float16]
CPU, GPU = torch.device("cpu"), torch.device("cuda")


@pytest.mark.parametrize("fast", [True, False])
@pytest.mark.parametrize("stored", [*HALVES, torch.float32])
def test_auto_is_bfloat16_only_where_that_is_fast(
    stored: torch.dtype, fast: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(processor, "fast_bfloat16", lambda: fast)
    expected = torch.bfloat16 if fast and stored in HALVES else torch.float32
    assert computing_dtype("auto", stored, CPU) == expected
    assert computing_dtype("auto", stored, GPU) == stored


def test_what_was_asked_for_stands(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processor, "fast_bfloat16", lambda: False)
    for device in (CPU, GPU):
        assert computing_dtype("bfloat16", torch.float32, device) == torch.bfloat16
        assert computing_dtype("float16", torch.float32, device) == torch.float16
        assert computing_dtype("float32", torch.bfloat16, device) == torch.float32
