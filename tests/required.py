"""With LLMOPT_REQUIRE_ALL=1 a test that skips for want of a package fails."""

from __future__ import annotations

import os
import re
from collections.abc import Generator
from typing import Any

import pytest

_WANTING = re.compile(r"could not import|no module named|not installed", re.IGNORECASE)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, Any, Any]:
    return _required((yield))


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report() -> Generator[None, Any, Any]:
    return _required((yield))


def _required(report: Any) -> Any:
    """The report, a failure where it is a skip that must not be."""
    required = os.environ.get("LLMOPT_REQUIRE_ALL") == "1"
    if required and report.skipped and isinstance(report.longrepr, tuple):
        reason = report.longrepr[-1]
        if _WANTING.search(reason):
            report.outcome = "failed"
            report.longrepr = f"LLMOPT_REQUIRE_ALL forbids to leave this out: {reason}"
    return report
