"""The types whose codes stand for vectors, against ggml: iq1, iq2, iq3."""

from __future__ import annotations

import pytest
import torch

from llmopt.errors import RequestError
from llmopt.grids.ggml import Search, decode, encode
from llmopt.specs.ggml import GGML_TYPES
from tests.ggml_reference import reference
from tests.grids.ggml import cases, vectors

TYPES = ("IQ1_S", "IQ1_M", "IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ3_XXS", "IQ3_S")
NEEDY = [type_id for type_id in TYPES if GGML_TYPES[type_id].importance == "required"]
#: a type and whether importance is given
CASES = [(t, weighted) for t in TYPES for weighted in (True, False) if weighted or t not in NEEDY]


@pytest.mark.parametrize("name", cases.TENSORS)
@pytest.mark.parametrize(("type_id", "weighted"), CASES)
def test_reference_writes_what_ggml_writes(type_id: str, name: str, weighted: bool) -> None:
    cases.check_reference(cases.table(*TYPES)[type_id, weighted], name)


@pytest.mark.parametrize("type_id", TYPES)
def test_decode_reads_what_ggml_reads(type_id: str) -> None:
    cases.check_decode(cases.table(*TYPES)[type_id, True])
    cases.check_any_bytes(type_id)


@pytest.mark.parametrize("name", cases.TENSORS)
@pytest.mark.parametrize(("type_id", "weighted"), CASES)
def test_best_loses_less(type_id: str, name: str, weighted: bool) -> None:
    ratio = cases.check_best(cases.table(*TYPES)[type_id, weighted], name)
    if name in ("normal", "heavy"):
        assert ratio < 0.92


@pytest.mark.parametrize("type_id", TYPES)
def test_pieces_for_feedback_are_exact(type_id: str) -> None:
    vectors.check_vector_pieces(type_id)


@pytest.mark.parametrize("type_id", [t for t in TYPES if not t.startswith("IQ1")])
def test_choice_is_the_nearest(type_id: str) -> None:
    even = type_id in ("IQ2_XXS", "IQ2_XS", "IQ3_XXS")
    vectors.check_signed_choice(type_id, even=even, slack=0.02 if even else 1e-5)


@pytest.mark.parametrize("type_id", ["IQ1_S", "IQ1_M"])
def test_errors_may_be_weighed_together(type_id: str) -> None:
    vectors.check_metric(type_id)


@pytest.mark.parametrize("search", ["reference", "best"])
@pytest.mark.parametrize("type_id", NEEDY)
def test_importance_is_required(type_id: str, search: Search) -> None:
    with pytest.raises(RequestError, match=f"{type_id} needs an importance matrix"):
        encode(type_id, torch.ones(2, 256), search=search)


def test_three_types_need_importance() -> None:
    assert NEEDY == ["IQ1_S", "IQ2_XXS", "IQ2_XS"]


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
