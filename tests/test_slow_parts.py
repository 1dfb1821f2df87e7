"""Every slow test belongs to a part of the slow suite that the Makefile runs."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parents[1]


def test_slow_tests_name_their_part() -> None:
    parts = re.search(r"^PART := (.*)$", (ROOT / "Makefile").read_text("utf-8"), re.MULTILINE)
    assert parts
    marks = [
        mark
        for path in (ROOT / "tests").rglob("test_*.py")
        for mark in re.findall(r"pytest\.mark\.slow\b(.*)", path.read_text("utf-8"))
    ]
    assert set(marks) == {f'(part="{part}")' for part in parts[1].split()}
