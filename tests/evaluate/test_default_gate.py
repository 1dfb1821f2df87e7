"""The default gate on the demo model: its limits were chosen on another one.

Every sound artifact must pass, and every kind of damage in scripts/calibrate_gate.py must fail,
each done to an artifact of its own: 8, 4 and 3 bits, both methods, both kinds of zero point.
"""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from llmopt.sources import resolve
from llmopt.step import Text
from llmopt.verbs.shared import texts as text
from scripts.calibrate_gate import DAMAGE, DefaultGate, damaged, quantized, variants

pytestmark = pytest.mark.slow(part="gate")

CALIBRATION = ["--calibration", "demo", "--sequences", "32", "--length", "256"]
EVALUATION = Text(
    split="evaluation", name="demo", source="demo", field="text", count=16, length=256
)
SOUND = variants([32, 128])


@pytest.fixture(scope="module")
def judge() -> DefaultGate:
    base = resolve("demo").folder
    return DefaultGate(base, text.evaluation(EVALUATION, base)[0])


@pytest.mark.parametrize("name", SOUND)
def test_a_sound_artifact_passes_and_its_damaged_copies_fail(
    name: str, judge: DefaultGate, tmp_path: Path
) -> None:
    sound = quantized(resolve("demo").folder, tmp_path / "sound", CALIBRATION, SOUND[name])
    finding = judge(sound)
    assert finding.passed, finding
    place = list(SOUND).index(name)
    for kind in [k for i, k in enumerate(DAMAGE) if 5 * i % len(SOUND) == place]:
        what = damaged(sound, kind, tmp_path / kind)
        finding = judge(tmp_path / kind)
        assert not finding.passed, f"{what} of {name}: {finding}"


def test_there_is_an_artifact_for_each_kind_of_damage() -> None:
    assert len(SOUND) == 24
    assert math.gcd(5, len(SOUND)) == 1
