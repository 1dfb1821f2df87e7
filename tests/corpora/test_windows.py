"""Windows: how many, which, and what two sets share."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from llmopt.corpora.tokenize import Tokens
from llmopt.corpora.windows import calibration_windows, evaluation_windows, overlap
from llmopt.errors import RequestError


def stream(count: int, first: int | None = None, seed: int | None = None) -> Tokens:
    ids = (
        np.arange(count) if seed is None else np.random.default_rng(seed).integers(999, size=count)
    )
    return Tokens("made-up", ids.astype(np.int32), first)


def test_too_little_text_says_what_there_is_enough_for() -> None:
    with pytest.raises(RequestError) as refused:
        evaluation_windows(stream(15), 2, 10)
    assert refused.value.hint == "give more text, or ask for at most 1 window of this length"
    with pytest.raises(RequestError) as refused:
        evaluation_windows(stream(9), 2, 10)
    assert refused.value.hint == "give more text, or ask for windows of at most 9 tokens"


def test_evaluation_takes_the_first_windows_in_order() -> None:
    windows = evaluation_windows(stream(25), 2, 10)
    assert windows.dtype == torch.int64
    assert windows.tolist() == [list(range(10)), list(range(10, 20))]


def test_calibration_windows_are_seeded_and_do_not_overlap() -> None:
    windows = calibration_windows(stream(1005), 60, 10, seed=3)
    assert (windows.shape, windows.dtype) == ((60, 10), torch.int64)
    assert len(windows.unique()) == 600
    assert torch.equal(windows[:, 1:], windows[:, :-1] + 1)
    assert torch.equal(windows, calibration_windows(stream(1005), 60, 10, seed=3))
    assert not torch.equal(windows, calibration_windows(stream(1005), 60, 10, seed=4))


def test_the_choice_for_a_seed_never_changes() -> None:
    assert calibration_windows(stream(100), 5, 10, seed=0)[:, 0].tolist() == [60, 90, 0, 20, 40]


def test_every_window_begins_with_the_family_bos() -> None:
    tokens = stream(40, first=777)
    for windows in (calibration_windows(tokens, 4, 10, 0), evaluation_windows(tokens, 4, 10)):
        assert windows[:, 0].tolist() == [777] * 4
        assert (windows[:, 1:] % 10 == torch.arange(1, 10)).all()


def test_too_few_tokens_says_how_many_there_are_and_are_needed() -> None:
    with pytest.raises(
        RequestError, match=r"made-up has 1,999 tokens; 2 windows of 1,000 need 2,0"
    ):
        evaluation_windows(stream(1999), 2, 1000)
    with pytest.raises(RequestError) as caught:
        calibration_windows(stream(1999), 2, 1000, 0)
    assert caught.value.hint is not None
    assert "at most 1 window" in caught.value.hint
    assert evaluation_windows(stream(2000), 2, 1000).shape == (2, 1000)


def test_overlap_counts_chunks_at_any_offset() -> None:
    text = stream(2048, seed=0)
    calibration = evaluation_windows(text, 4, 512)
    assert overlap(calibration, calibration) == 1.0
    assert overlap(calibration, evaluation_windows(stream(2048, seed=1), 4, 512)) == 0.0
    shifted = Tokens("shifted", text.ids[37:], None)
    # 15 of 16 chunks lie inside one calibration window, or in two of them
    assert overlap(calibration, evaluation_windows(shifted, 2, 512)) == pytest.approx(14 / 16)


def test_overlap_of_windows_shorter_than_a_chunk() -> None:
    windows = evaluation_windows(stream(64, seed=0), 4, 16)
    assert overlap(windows[:2], windows) == 0.5
