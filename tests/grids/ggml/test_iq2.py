from __future__ import annotations

import pytest
import torch

from llmopt.errors import RequestError
from llmopt.grids.ggml import Search, encode
from tests.grids.ggml import cases, vectors

TYPES = ("IQ2_XXS", "IQ2_XS", "IQ2_S")
#: a type and whether importance is given
CASES = [*((type_id, True) for type_id in TYPES), ("IQ2_S", False)]


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


@pytest.mark.parametrize(
    ("type_id", "even"), [("IQ2_XXS", True), ("IQ2_XS", True), ("IQ2_S", False)]
)
def test_choice_is_the_nearest(type_id: str, even: bool) -> None:
    vectors.check_signed_choice(type_id, even=even, slack=0.02 if even else 1e-5)


@pytest.mark.parametrize("search", ["reference", "best"])
@pytest.mark.parametrize("type_id", ["IQ2_XXS", "IQ2_XS"])
def test_importance_is_required(type_id: str, search: Search) -> None:
    with pytest.raises(RequestError, match=f"{type_id} needs an importance matrix"):
        encode(type_id, torch.ones(2, 256), search=search)
