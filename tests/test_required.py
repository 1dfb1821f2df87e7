"""Tests that need a package that is not there."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

INSIDE = """
import importlib.util
import pytest

def test_imports():
    pytest.importorskip("no_such_package")

@pytest.mark.skipif(importlib.util.find_spec("no_such_package") is None, reason="not installed")
def test_looks():
    pass

def test_other_reason():
    pytest.skip("this kernel cannot do that")

def test_sound():
    pass
"""


@pytest.mark.parametrize(
    ("required", "expected"),
    [
        ("1", {"passed": 1, "failed": 1, "errors": 2, "skipped": 1}),
        ("", {"passed": 1, "skipped": 4}),
    ],
)
def test_such_tests_fail_where_all_are_required(
    required: str, expected: dict[str, int], tmp_path: Path
) -> None:
    (tmp_path / "test_inside.py").write_text(INSIDE)
    (tmp_path / "test_whole.py").write_text("import pytest\npytest.importorskip('no_such_package')")
    (tmp_path / "pytest.ini").write_text("[pytest]\n")
    command = [sys.executable, "-m", "pytest", "-q", "-p", "tests.required", "-p", "no:xdist"]
    ran = subprocess.run(
        [*command, "--continue-on-collection-errors", str(tmp_path)],
        cwd=Path(__file__).parents[1], capture_output=True, text=True,
        env={**os.environ, "LLMOPT_REQUIRE_ALL": required},
    )  # fmt: skip
    counts = re.findall(r"(\d+) (\w+)", ran.stdout.splitlines()[-1].partition(" in ")[0])
    assert {word: int(count) for count, word in counts} == expected, ran.stdout
    assert (ran.returncode == 0) == (not required)
