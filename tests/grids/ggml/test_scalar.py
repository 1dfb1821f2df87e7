"""The types with a code for every weight, against ggml: legacy, kquants, floats, ternary,
table."""

from __future__ import annotations

import pytest

from tests.grids.ggml import cases

TYPES = (
    *("Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0"),
    *("Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K"),
    *("MXFP4", "NVFP4", "TQ1_0", "TQ2_0", "IQ4_NL", "IQ4_XS"),
)
BOTH = [pytest.param(True, id="importance"), pytest.param(False, id="plain")]


@pytest.mark.parametrize("weighted", BOTH)
@pytest.mark.parametrize("name", cases.TENSORS)
@pytest.mark.parametrize("type_id", TYPES)
def test_reference_writes_what_ggml_writes(type_id: str, name: str, weighted: bool) -> None:
    cases.check_reference(cases.table(*TYPES)[type_id, weighted], name)


@pytest.mark.parametrize("type_id", TYPES)
def test_any_bytes_decode_alike(type_id: str) -> None:
    cases.check_any_bytes(type_id)


@pytest.mark.parametrize("weighted", BOTH)
@pytest.mark.parametrize("type_id", TYPES)
def test_decode_reads_what_ggml_reads(type_id: str, weighted: bool) -> None:
    cases.check_decode(cases.table(*TYPES)[type_id, weighted])


@pytest.mark.parametrize("weighted", BOTH)
@pytest.mark.parametrize("name", cases.TENSORS)
@pytest.mark.parametrize("type_id", TYPES)
def test_best_loses_less(type_id: str, name: str, weighted: bool) -> None:
    ratio = cases.check_best(cases.table(*TYPES)[type_id, weighted], name)
    if name in ("normal", "heavy"):
        assert ratio < 0.97


@pytest.mark.parametrize("type_id", TYPES)
def test_pieces_for_feedback_are_exact(type_id: str) -> None:
    cases.check_pieces(type_id)
