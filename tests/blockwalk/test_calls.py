"""How blocks are called is held once where it is the same."""

from __future__ import annotations

import pytest
import torch

from llmopt.blockwalk.calls import BlockCall, Calls, Handed
from llmopt.errors import LlmoptError

HIDDEN = torch.zeros(2, 3, 4)


def call(**keywords: object) -> BlockCall:
    return BlockCall.of((HIDDEN,), keywords)[1]


def test_what_is_equal_is_one_object_and_the_rest_is_a_batch_s_own() -> None:
    calls = Calls()
    for batch in range(2):
        calls.note(
            batch,
            2,
            [call(mask=torch.ones(3), own=torch.full((1,), batch), places=(1, torch.ones(1)))],
        )
    first, second = (calls.of(batch, 0)[0].keywords for batch in range(2))
    assert first["mask"] is second["mask"]
    assert first["places"][1] is second["places"][1]  # type: ignore[index]
    assert (first["own"].item(), second["own"].item()) == (0, 1)  # type: ignore[attr-defined]
    assert not calls.carry_state


@pytest.mark.parametrize("state", [{}, ({},), [], object()])
def test_what_blocks_may_write_to_is_a_batch_s_own(state: object) -> None:
    calls = Calls()
    calls.note(0, 2, [call(state=state)])
    assert calls.carry_state


def test_hidden_states_come_first_or_by_their_name() -> None:
    for arguments, keywords in (((HIDDEN, 1), {"a": 2}), ((), {"hidden_states": HIDDEN, "a": 2})):
        hidden, known = BlockCall.of(arguments, keywords)
        assert hidden is HIDDEN
        assert known.given(hidden) == (arguments, keywords)
    with pytest.raises(LlmoptError, match="something else"):
        BlockCall.of((), {"a": 2})


def test_what_a_block_returns_is_handed_to_the_next_of_its_batch() -> None:
    calls = Calls()
    for batch in range(2):
        calls.note(batch, 2, [call(top=None), call(top=Handed(0)), call(top=Handed(0))])
    assert calls.carry_state
    for block in range(2):
        for batch in range(2):
            calls.hand(batch, block, (f"{batch}-{block}",))
    for batch in range(2):
        known, handed = calls.of(batch, 2)
        assert known.given(HIDDEN, handed) == ((HIDDEN,), {"top": f"{batch}-1"})
        assert calls.of(batch, 1)[1]  # it may be run again
        assert not calls.of(batch, 0)[1]


def test_masks_by_kind_of_layer_are_no_state() -> None:
    calls = Calls()
    for batch in range(2):
        calls.note(batch, 2, [call(masks={"full": torch.ones(2), "sliding": None})])
    assert not calls.carry_state
    assert calls.of(0, 0)[0].keywords["masks"] is calls.of(1, 0)[0].keywords["masks"]
