"""What is wrong with a command line or a recipe is told all at once, where it was typed."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest

from tests.cli.conftest import Llmopt


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        (
            ("quantize demo -o x --bits 5 --group-size 100 --method gtpq --damping 3 --sequences 0"
             " --scale-search least --activations int7 --seed 99999999999999999999"),
            ["--bits: 5", "--group-size: 100", "--method: unknown", "--damping:", "--sequences:",
             "--scale-search:", "--activations:", "--seed:"],
        ),
        (
            ("quantize demo -o x --gate nonsense --gate 'kl.men < 1' --calibration gone.txt"
             " --group-size 48 --asymmetric --grid fp8 --skip *.foo --method awq"),
            ["--gate: 'nonsense'", "--gate: unknown metric", "--calibration: gone.txt", "--grid:",
             "--group-size: group size 48 does not divide", "--asymmetric:", "--skip: the pattern"],
        ),
        ("quantize demo -o x --grid int4 --bits 4 --length 1", ["--bits: says the same", "--length:"]),
        ("quantize nowhere/at/all -o x", ["MODEL: "]),
        ("quantize demo -o x --evaluation gone.txt", ["--evaluation: gone.txt"]),
        ("quantize demo -o x --target-size 0", ["--target-size: 0 is no size"]),
        ("quantize demo -o x --target-bpw 3 --target-size 5MB --head", ["--target-size:", "--head:"]),
        ("convert demo -o x --to awk --dtype int4 --search worst", ["--to:", "--dtype:", "--search:"]),
        ("convert demo -o x --to gguf --type foo --imatrix i --calibration demo", ["--type: foo", "--imatrix:"]),
        ("convert demo -o x --to gguf:Q4_K_M --grid int4 --group-size 32 --asymmetric --damping .1",
         ["--grid:", "--group-size:", "--asymmetric:", "--damping:"]),
        ("convert demo -o x --to gguf:Q4_K_M --imatrix gone", ["--imatrix: there is no file"]),
        ("convert demo -o x --to awq --exact", ["--exact: model.layers"]),
        ("quantize demo -o x --method awq --damping .1", ["--damping: method awq has no such setting"]),
        ("convert demo -o x --to awq --bits 3", ["--bits: format awq"]),
        ("convert demo -o x --to awq --bits 3 --split-size 5MB", ["--split-size: a conversion to awq has no such setting"]),
        ("bench demo --windows 0 --runtime fast --length 1", ["--windows:", "--runtime:", "--length:"]),
        ("bench demo --evaluation gone --gate 'kl < x'", ["--evaluation: gone", "--gate:"]),
        ("bench demo --against ./nowhere", ["--against: there is no model"]),
        ("bench ./nowhere", ["ARTIFACTS: there is no model"]),
        ("bench demo nowhere", ["ARTIFACTS: there is no model folder or .gguf file nowhere"]),
        ("bench demo --print-recipe --windows 0 --gate a", ["--windows:", "--gate:"]),
        ("convert demo -o x --to gguf:q4_k_m --length 1", ["--to: unknown preset", "--length:"]),
        ("quantize demo -o x --candidate int3", ["--candidate: only a budget"]),
        ("quantize demo -o x --revision main", ["MODEL: demo is no model on the hub, and has no revision"]),
        ("quantize demo -o x --threads 99999999999999999999", ["--threads: "]),
        ("inspect demo --sensitivity --candidate int9 --calibration demo", ["--candidate: unknown grid"]),
    ],
)  # fmt: skip
def test_all_mistakes_are_told_with_the_flags_that_were_typed(
    llmopt: Llmopt, tmp_path: Path, line: str, expected: list[str]
) -> None:
    done = llmopt(*shlex.split(line), "--json")
    assert done.code == 2, done.err
    told = [error["message"] for error in done.document["errors"]]
    assert len(told) == len(expected), told
    for start in expected:
        assert sum(message.startswith(start) for message in told) == 1, (start, told)
    assert done.document["error"]["message"] == told[0]
    assert done.err.count("error: ") == len(told)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("line", "mended"),
    [
        ("quantize demo -o x --group-size 48", {"--group-size 48": "--group-size 32"}),
        ("quantize demo -o x --group-size 512", {"--group-size 512": "--group-size 256"}),
        ("quantize demo -o x --grid fp8 --format compressed-tensors --asymmetric --group-size -1", {" --asymmetric": ""}),
        ("quantize demo -o x --grid fp8 --format compressed-tensors", {"tensors": "tensors --group-size -1"}),
        ("quantize demo -o x --grid int4 --activations int8 --format compressed-tensors --group-size -1", {"--grid int4": "--grid int8"}),
        ("quantize demo -o x --method gtpq", {"gtpq": "gptq"}),
        ("quantize demo -o x --target-bpw 4 --head", {" --head": ""}),
        ("quantize demo -o x --target-bpw 4 --sequences 1", {"--sequences 1": "--sequences 2"}),
        ("convert demo -o x --to awq --exact", {" --exact": ""}),
        ("convert demo -o x --to gguf:q4_k_m", {"q4_k_m": "Q4_K_M"}),
        ("convert demo -o x --to gguf --group-size 32", {"gguf --group-size 32": "gguf:Q4_K_M"}),
        ("convert demo -o x --to gguf:Q4_K_M --dtype float32", {" --dtype float32": ""}),
        ("quantize demo -o x --candidate int3", {"-o x": "-o x --target-bpw 4.5"}),
        ("quantize demo -o x --revision main", {" --revision main": ""}),
        ("convert demo -o x --to gguf:Q4_K_M --exact", {" --exact": ""}),
        ("convert demo -o x --to gptq_v2 --bits 8 --grid int8", {" --bits 8": ""}),
        ("convert demo -o x --to gguf --damping .1", {"--to gguf": "--to gguf:Q4_K_M --method gptq --calibration demo"}),
    ],
)  # fmt: skip
def test_hints_work(
    llmopt: Llmopt, line: str, mended: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from llmopt import pipeline

    monkeypatch.setattr(
        pipeline, "run", lambda *_: pipeline.Ran()
    )  # plans are all that is looked at here
    refused = llmopt(*shlex.split(line), "--json")
    assert refused.code == 2
    for old, new in mended.items():
        line = line.replace(old, new)
    assert llmopt(*shlex.split(line)).code == 0, line


def test_no_more_than_twenty_are_shown(llmopt: Llmopt, tmp_path: Path) -> None:
    steps = "".join(f"  - {{id: s{i}, quantize: {{grid: x{i}}}}}\n" for i in range(30))
    (tmp_path / "r.yaml").write_text(f"version: 1\nmodel: demo\nsteps:\n{steps}")
    done = llmopt("plan", "r.yaml", "--json")
    assert done.err.count("error: ") == 20
    assert "and 10 more" in done.err
    assert [error["line"] for error in done.document["errors"]] == list(range(4, 34))


RECIPE = """\
version: 1
model: demo
steps:
  - id: q
    quantize:
      method: rtn
      overrides:
        - {match: "*.mlp.*", group_size: 64}
        - match: "*.v_proj"
          grid: fp8
        - {match: "*.q_proj", group_size: 48, symmetric: false}
  - id: m
    quantize: {method: rtn}
    matrix:
      group_size: [64, 48]
      grid:
        - int4
        - fp8
"""


def test_places_are_those_of_the_values(llmopt: Llmopt, tmp_path: Path) -> None:
    (tmp_path / "r.yaml").write_text(RECIPE)
    errors = llmopt("plan", "r.yaml", "--json").document["errors"]
    assert {(error["key"], error["line"], error["column"]) for error in errors} == {
        ("steps[0].quantize.overrides[1].grid", 10, 11),
        ("steps[0].quantize.overrides[2].group_size", 11, 31),
        ("steps[1].matrix.group_size[1]", 15, 24),
        ("steps[1].matrix.grid[1]", 18, 11),
    }


def test_what_set_says_is_not_looked_for_in_the_file(llmopt: Llmopt, tmp_path: Path) -> None:
    (tmp_path / "r.yaml").write_text(
        "version: 1\nmodel: demo\nsteps:\n  - {id: q, quantize: {grid: int4}}\n"
    )
    done = llmopt(
        "plan", "r.yaml", "--set", "steps.q.quantize.grid=int5",
        "--set", "steps.q.quantize.overrides=[{match: nothing, skip: true}]", "--set", "data.evaluation.windows=1",
    )  # fmt: skip
    assert done.code == 2
    assert "error: --set steps.q.quantize.grid=int5: unknown grid 'int5'" in done.err
    assert "error: --set data.evaluation.windows=1: input should be greater" in done.err
    assert "r.yaml:" not in done.err
    done = llmopt(
        "plan", "r.yaml", "--set", "steps.q.quantize.overrides=[{match: nothing, skip: true}]"
    )
    assert (
        "error: --set steps.q.quantize.overrides=[{match: nothing, skip: true}]: the pattern"
        in done.err
    )


def test_mistakes_of_several_steps_come_together(llmopt: Llmopt, tmp_path: Path) -> None:
    (tmp_path / "r.yaml").write_text("""\
version: 1
model: demo
steps:
  - {id: a, quantize: {method: rtn, grid: fp8}}
  - {id: b, quantize: {from: a, method: rtn}}
  - {id: c, convert: {to: awq, grid: int3}}
  - {id: s, bench: {gates: [nonsense]}}
  - {id: t, bench: {from: c, gates: [nonsense]}}
  - {id: u, bench: {from: model, gates: ["speed < 1"]}}
""")
    errors = llmopt("plan", "r.yaml", "--json").document["errors"]
    assert [error["line"] for error in errors] == [4, 6, 7, 9]
