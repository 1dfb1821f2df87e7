"""Run the command line in this process, as a user would."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from llmopt.cli import main, output

#: small enough to be quick, large enough to be real
SMALL = ["--sequences", "8", "--length", "64"]


@dataclass
class Ran:
    code: int
    out: str
    err: str

    @property
    def document(self) -> Any:
        return json.loads(self.out)


Llmopt = Callable[..., Ran]


@pytest.fixture
def llmopt(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> Llmopt:
    """llmopt("quantize", "demo", ...) in an empty folder -> exit code, stdout, stderr."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "100")
    monkeypatch.setattr(main.signal, "signal", lambda *_: None)
    monkeypatch.setattr(main.threads, "settle", lambda: None)  # it is for a process of its own

    def call(*arguments: object) -> Ran:
        monkeypatch.setattr(output, "documents", 0)  # as in a process of its own
        monkeypatch.setattr(sys, "argv", ["llmopt", *map(str, arguments)])
        capfd.readouterr()
        with pytest.raises(SystemExit) as stop:
            main.run()
        out, err = capfd.readouterr()
        return Ran(int(stop.value.code or 0), out, err)

    return call
