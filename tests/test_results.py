"""What benchmarks printed says nothing of where it was printed."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

RESULTS = sorted((Path(__file__).parents[1] / "benchmarks" / "results").iterdir())
#: a path from the root: of two names at least
ABSOLUTE = re.compile(r"(?:^|[\s\"'(=])/\w[\w.-]*/[\w./-]+")


def test_a_path_of_a_machine_would_be_seen() -> None:
    assert ABSOLUTE.search('"0.6 /home/user/model: checking the request ..."')
    assert not ABSOLUTE.search("| gptq | 3 / 4 | measured / planned | a/b/c |")


@pytest.mark.parametrize("path", RESULTS, ids=lambda path: path.name)
def test_no_path_of_a_machine_is_left(path: Path) -> None:
    assert not ABSOLUTE.search(path.read_text("utf-8"))
