"""What the peers' scripts share: their arguments and the report. Needs only numpy and torch."""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch


def parse(description: str | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--calibration", type=Path, required=True, help=".npy, int64 [n, length]")
    parser.add_argument("--out", type=Path, required=True, help="folder for the artifact")
    parser.add_argument("--report", type=Path, required=True, help="JSON file for the times")
    parser.add_argument("--bits", type=int, default=4)
    parser.add_argument("--group-size", type=int, default=128)
    return parser.parse_args()


def windows(arguments: argparse.Namespace) -> torch.Tensor:
    """Calibration tokens int64 [n, length]."""
    return torch.from_numpy(np.load(arguments.calibration)).long()


class Clock:
    """Seconds of the named phases of a run, in order."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._last = time.perf_counter()

    def lap(self, phase: str) -> None:
        now = time.perf_counter()
        self.seconds[phase] = now - self._last
        self._last = now


def write_report(
    arguments: argparse.Namespace, clock: Clock, version: str, settings: dict[str, Any]
) -> None:
    report = {"version": version, "settings": settings, "seconds": clock.seconds}
    arguments.report.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
