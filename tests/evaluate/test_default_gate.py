"""The default gate on the demo model: its limits were chosen on another one.

Every sound artifact must pass, and every kind of damage in scripts/calibrate_gate.py must fail,
each done to an artifact of its own: 8, 4 and 3 bits, both methods, both kinds of zero point.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from llmopt.sources import resolve
from llmopt.stages import text
from scripts.calibrate_gate import DAMAGE, Judge, damaged, quantized

pytestmark = pytest.mark.slow

CALIBRATION = ["--calibration", "demo", "--sequences", "32", "--length", "256"]
EVALUATION = {"field": "text", "windows": 16, "length": 256}


@pytest.fixture(scope="module")
def judge() -> Judge:
    base = resolve("demo").folder
    return Judge(base, text.evaluation(EVALUATION, "demo", base)[0])


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> list[tuple[str, Path]]:
    folder = tmp_path_factory.mktemp("sound")
    return list(quantized(resolve("demo").folder, folder, CALIBRATION, [32, 128]))


def test_sound_artifacts_pass(judge: Judge, sound: list[tuple[str, Path]]) -> None:
    found = {name: judge(path) for name, path in sound}
    assert len(found) == 24
    assert [name for name, finding in found.items() if not finding.passed] == []


@pytest.mark.parametrize("kind", list(DAMAGE))
def test_damaged_artifacts_fail(
    kind: str, judge: Judge, sound: list[tuple[str, Path]], tmp_path: Path
) -> None:
    name, path = sound[(5 * list(DAMAGE).index(kind)) % len(sound)]
    what = damaged(path, kind, tmp_path / "damaged")
    finding = judge(tmp_path / "damaged")
    assert not finding.passed, f"{what} of {name}: {finding}"
