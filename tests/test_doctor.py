"""What doctor offers is what something imports, and what it says of the CPU is what is computed."""

from __future__ import annotations

import ast
import tomllib
from pathlib import Path

import pytest

from llmopt import doctor, forecast, processor
from llmopt.errors import LlmoptError
from llmopt.runtimes.torch import int8
from llmopt.specs import OPTIONAL_PACKAGES, WORK

ROOT = Path(__file__).parents[1]


def required() -> set[tuple[str, str]]:
    """(module, extra) of every `require` in the code."""
    found = set()
    for path in sorted((ROOT / "llmopt").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.Call) and ast.unparse(node.func).endswith("require"):
                extra = next(word.value for word in node.keywords if word.arg == "extra")
                found.add((ast.literal_eval(node.args[0]).split(".")[0], ast.literal_eval(extra)))
    return found


def test_extras_are_those_that_something_imports() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    extras = project["optional-dependencies"]
    assert {extra for _, extra in required()} == extras.keys() - {"dev", "all"}
    assert {(module, extra) for module, (extra, _) in OPTIONAL_PACKAGES.items()} == required()
    names = ",".join(extra for extra in extras if extra not in ("dev", "all"))
    assert extras["all"] == [f"llmopt[{names}]"]


@pytest.mark.parametrize(("fast", "exact"), [(True, True), (True, False), (False, True)])
def test_integers_are_claimed_where_linears_compute_in_them(
    monkeypatch: pytest.MonkeyPatch, fast: bool, exact: bool
) -> None:
    monkeypatch.setattr(processor, "fast_int8", lambda: fast)
    monkeypatch.setattr(int8, "kernel_is_exact", lambda: exact)
    said = doctor.findings()["machine"]["int8 linears"]
    assert said == ("integer products" if fast and exact else "computed in float32")


def test_a_machine_is_measured_and_that_is_kept() -> None:
    assert doctor.findings(1)["speeds"] is None
    doctor.measure(1, quick=True)
    kept = forecast.speeds(forecast.here(1))
    assert kept is not None
    assert kept.seconds.keys() == WORK.keys()
    assert all(0 <= seconds < 60 for seconds in kept.seconds.values())
    assert 1e8 < 1 / kept.seconds["products"] < 1e15
    said = doctor.findings(1)["speeds"]
    assert said["threads"] == 1
    assert said["per_second"]["products"] == 1 / kept.seconds["products"]
    assert forecast.speeds(forecast.here(7)) is None


def test_a_measurement_that_fails_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "_MODULE", "llmopt.no_such_module")
    with pytest.raises(LlmoptError, match=r"exit code 1: .*no_such_module"):
        doctor.measure(1)
    monkeypatch.setattr(doctor, "_MODULE", "timeit")
    monkeypatch.setattr(doctor, "_SECONDS", 0.01)
    with pytest.raises(LlmoptError, match="did not end within"):
        doctor.measure(1)
    assert doctor.findings(1)["speeds"] is None
