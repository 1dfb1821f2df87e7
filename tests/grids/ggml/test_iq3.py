from __future__ import annotations

import pytest
import torch

from llmopt.grids.ggml import decode, encode
from tests.ggml_reference import reference
from tests.grids.ggml import cases, vectors

TYPES = ("IQ3_XXS", "IQ3_S")
#: a type and whether importance is given
CASES = [(type_id, weighted) for type_id in TYPES for weighted in (True, False)]


@pytest.mark.parametrize("name", cases.TENSORS)
@pytest.mark.parametrize(("type_id", "weighted"), CASES)
def test_reference_writes_what_ggml_writes(type_id: str, name: str, weighted: bool) -> None:
    cases.check_reference(cases.table(*TYPES)[type_id, weighted], name)


@pytest.mark.parametrize("type_id", TYPES)
def test_decode_reads_what_ggml_reads(type_id: str) -> None:
    cases.check_decode(cases.table(*TYPES)[type_id, True])
    vectors.check_any_bytes(type_id)


@pytest.mark.parametrize("name", cases.TENSORS)
@pytest.mark.parametrize(("type_id", "weighted"), CASES)
def test_best_loses_less(type_id: str, name: str, weighted: bool) -> None:
    ratio = cases.check_best(cases.table(*TYPES)[type_id, weighted], name)
    if name in ("normal", "heavy"):
        assert ratio < 0.92


@pytest.mark.parametrize("type_id", TYPES)
def test_pieces_for_feedback_are_exact(type_id: str) -> None:
    vectors.check_vector_pieces(type_id)


@pytest.mark.parametrize(("type_id", "even"), [("IQ3_XXS", True), ("IQ3_S", False)])
def test_choice_is_the_nearest(type_id: str, even: bool) -> None:
    vectors.check_signed_choice(type_id, even=even, slack=0.02 if even else 1e-5)


def test_a_part_of_zeros_spoils_ggmls_iq3_s_and_not_ours() -> None:
    w, importance = cases.draw("normal"), cases.importance()
    w[:, 64:96] = 0
    theirs = reference("IQ3_S", w, importance)
    assert torch.equal(encode("IQ3_S", w, importance, "reference"), theirs)
    errors = [
        cases.error_of(decode("IQ3_S", data), w, importance)
        for data in (encode("IQ3_S", w, importance), theirs)
    ]
    assert errors[0] < 0.1 * errors[1]
