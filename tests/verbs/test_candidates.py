"""Which settings a linear may get."""

from __future__ import annotations

import pytest

from llmopt.errors import RequestError
from llmopt.model.change import Change
from llmopt.model.layout import Layout
from llmopt.verbs.quantize.candidates import candidates, with_options
from llmopt.verbs.quantize.settings import QuantizeSettings
from llmopt.verbs.shared.budget import byte_budget

INT4 = Layout(grid="int4", group_size=128, symmetric=True)


def labels(**settings: object) -> list[str]:
    return [each.label for each in candidates(QuantizeSettings(target_bpw=4.0, **settings))]


def linear(name: str, rows: int, cols: int, why: str = "") -> Change:
    return Change(
        name=f"{name}.weight", actions=("quantized",), shape=(rows, cols), bytes=0, layout=INT4,
        why=why,
    )  # fmt: skip


def test_the_usual_candidates_are_those_of_the_format() -> None:
    assert labels() == [
        "int2 g128 sym", "int2 row sym", "int3 g128 sym", "int3 row sym", "int4 g32 sym",
        "int4 g64 sym", "int4 g128 sym", "int4 row sym", "int8 row sym",
    ]  # fmt: skip
    assert labels(symmetric=False, group_size=256)[:3] == [
        "int2 g128 asym", "int2 g256 asym", "int2 row asym"
    ]  # fmt: skip
    assert {label.split()[0] for label in labels(format="awq", symmetric=False)} == {"int4"}


def test_candidates_are_read_as_their_labels() -> None:
    asked = ["int4 g32", "int3", "int2 row asym"]
    assert labels(candidates=asked) == ["int4 g32 sym", "int3 g128 sym", "int2 row asym"]
    with pytest.raises(RequestError, match="cannot hold"):
        labels(candidates=["int4 row"], format="awq", symmetric=False)


def test_groups_that_do_not_fill_a_row_are_left_out() -> None:
    settings = QuantizeSettings(target_bpw=4.0, candidates=["int4 g64", "int4 g128", "int4 row"])
    changes = [linear("a", 32, 128), linear("b", 32, 192)]
    found = [[o.label for o in f.options] for f in with_options(changes, settings)]
    # g128 of 128 inputs is a row; 128 does not divide 192
    assert found == [["int4 g64 sym", "int4 row sym"], ["int4 g64 sym", "int4 row sym"]]
    alone = QuantizeSettings(target_bpw=4.0, candidates=["int4 g128"])
    assert [len(f.options) for f in with_options(changes[:1], alone)] == [1]
    with pytest.raises(RequestError, match="divides the 192 inputs of b"):
        list(with_options(changes, alone))


def test_a_budget_counts_bits_of_quantized_weights_or_all_bytes() -> None:
    kept = Change(name="norm.weight", actions=("kept",), shape=(64,), bytes=128)
    settings = QuantizeSettings(target_bpw=4.0)
    changes = [*with_options([linear("a", 32, 128), linear("b", 64, 64)], settings), kept]
    assert byte_budget(changes, 4.5, None) == int(2 * 4096 * 4.5 / 8)
    whole = byte_budget(changes, None, 100_000)
    assert 90_000 < whole < 100_000 - 128
