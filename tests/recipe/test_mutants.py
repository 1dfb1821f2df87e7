"""Thirty-odd broken recipes: each refused fast, at the right line and key, without torch."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

GOOD = """\
version: 1
name: mutant
model: demo
data:
  calibration: {source: demo, sequences: 16, length: 128}
  evaluation:
    source: demo
    windows: 4
steps:
  - id: a
    quantize:
      method: gptq
      grid: int4
      group_size: 128
      overrides:
        - match: "*.down_proj"
          grid: int8
  - id: b
    matrix: {grid: [int4, int3]}
    quantize: {method: rtn, scale_search: mse}
  - id: score
    bench:
      from: [a, b]
      gates: ["kl.mean < 0.5"]
"""

#: name, text replaced, replacement, line of the error, dotted key, a word of message or hint
BENCH = '    bench:\n      from: [a, b]\n      gates: ["kl.mean < 0.5"]\n'
MUTANTS = [
    ("unknown version", "version: 1", "version: 2", 1, "version", "should be 1"),
    ("missing model", "model: demo\n", "", 1, "", "model is required"),
    ("typo at the top", "model: demo", "modle: demo", 3, "modle", "'model'"),
    ("unknown model", "model: demo", "model: ./nowhere", 3, "model", "no model folder"),
    ("typo in data", "  calibration: {", "  calibraton: {", 5, "data.calibraton", "'calibration'"),
    ("typo inside data", "sequences: 16", "sequence: 16", 5, "data.calibration.sequence", "'sequences'"),
    ("no sequences", "sequences: 16", "sequences: 0", 5, "data.calibration.sequences", "greater"),
    ("text for a number", "length: 128", "length: long", 5, "data.calibration.length", "integer"),
    ("one window", "windows: 4", "windows: 1", 8, "data.evaluation.windows", "greater"),
    ("missing file", "    source: demo\n", "    source: gone.txt\n", 7, "data.evaluation.source", "no such file"),
    ("empty calibration", "{source: demo,", "{source: empty.txt,", 5, "data.calibration.source", "no text"),
    ("typo in a verb", "    quantize:\n", "    quantise:\n", 11, "steps[0].quantise", "'quantize'"),
    ("typo in a setting", "group_size: 128", "groupsize: 128", 14, "steps[0].quantize.groupsize", "'group_size'"),
    ("number in quotes", "group_size: 128", 'group_size: "128"', 14, "steps[0].quantize.group_size", "integer"),
    ("boolean for a number", "group_size: 128", "group_size: yes", 14, "steps[0].quantize.group_size", "integer"),
    ("odd group size", "group_size: 128", "group_size: 100", 14, "steps[0].quantize.group_size", "multiple of 16"),
    ("group does not divide", "group_size: 128", "group_size: 192", 14, "steps[0].quantize.group_size", "model.layers.0.mlp"),
    ("unknown method", "method: gptq", "method: gtpq", 12, "steps[0].quantize.method", "'gptq'"),
    ("unknown grid", "      grid: int4", "      grid: int5", 13, "steps[0].quantize.grid", "int"),
    ("unmatched pattern", '"*.down_proj"', '"*.down_porj"', 16, "steps[0].quantize.overrides[0].match", "matches no linear"),
    ("typo in an override", "- match:", "- macth:", 16, "steps[0].quantize.overrides[0].macth", "'match'"),
    ("bad grid in a matrix", "[int4, int3]", "[int4, int9]", 19, "steps[1].matrix.grid[1]", "int"),
    ("typo in a matrix", "{grid: [int4", "{gird: [int4", 19, "steps[1].matrix.gird", "'grid'"),
    ("empty matrix", "[int4, int3]", "[]", 19, "steps[1].matrix.grid", "empty"),
    ("idle setting", "scale_search: mse", "damping: 0.1", 20, "steps[1].quantize.damping", "no such setting"),
    ("bad choice", "scale_search: mse", "scale_search: msee", 20, "steps[1].quantize.scale_search", "'mse'"),
    ("unknown parent", "from: [a, b]", "from: [a, c]", 23, "steps[2].bench.from", "no step is called 'c'"),
    ("quantized twice", "      grid: int4", "      from: b\n      grid: int4", 13, "steps[0].quantize.from", "take one: b-int4, b-int3"),
    ("cycle", "      from: [a, b]", "      from: [a, score]", 23, "steps[2].bench.from", "wait for each other"),
    ("two steps of a name", "  - id: b", "  - id: a", 18, "steps[1].id", "two steps"),
    ("reserved name", "  - id: b", "  - id: model", 18, "steps[1].id", "reserved"),
    ("unreadable gate", "kl.mean < 0.5", "kl.mean 0.5", 24, "steps[2].bench.gates[0]", "not a gate"),
    ("unknown metric", "kl.mean < 0.5", "kl.men < 0.5", 24, "steps[2].bench.gates[0]", "kl.mean"),
    ("step without a verb", "    bench:\n      from: [a, b]\n      gates: [\"kl.mean < 0.5\"]\n", "", 21, "steps[2]", "exactly one of"),
    ("key given twice", "name: mutant", "name: mutant\nname: again", 3, "name", "given twice"),
    ("broken YAML", "[int4, int3]}", "[int4, int3}", 19, "", "not valid YAML"),
    ("undefined variable", "name: mutant", "name: ${LLMOPT_NOT_SET}", 2, "name", "LLMOPT_NOT_SET"),
    ("embeddings", "group_size: 128", "embeddings: true", 14, "steps[0].quantize.embeddings", "cannot hold"),
    ("conversion to nothing", BENCH, "    convert: {from: a}\n", 22, "steps[2].convert", "to is required"),
    ("unknown target", BENCH, "    convert: {from: a, to: awk}\n", 22, "steps[2].convert.to", "'awq'"),
    ("not exact", BENCH, "    convert: {to: awq, exact: true}\n", 22, "steps[2].convert.exact", "plain weights"),
    ("bad target in a matrix", BENCH, "    convert: {from: a}\n    matrix: {to: [awq, q4]}\n", 23, "steps[2].matrix.to[1]", "target"),
    ("same text twice", "calibration: {source: demo,", "calibration: {source: some.txt,", 7, "data.evaluation.source", "same text"),
]  # fmt: skip

RUNNER = """
import json, sys
from pathlib import Path
from llmopt import planner
from llmopt.errors import RecipeError
from llmopt.recipe import load
found = {}
for path in sorted(Path(sys.argv[1]).glob("*.yaml")):
    try:
        planner.plan(*load(path), Path(sys.argv[1]) / "out", fetch=False)
        found[path.stem] = None
    except RecipeError as error:
        found[path.stem] = [error.line, error.key or "", f"{error.message} | {error.hint}"]
print(json.dumps({"found": found, "torch": "torch" in sys.modules,
                  "tensors": "llmopt.formats.safetensors" in sys.modules}))
"""


def planned_apart(folder: Path) -> dict:
    """Plan every recipe in `folder` in a fresh interpreter, so that its imports can be seen."""
    done = subprocess.run(
        [sys.executable, "-c", RUNNER, str(folder)],
        capture_output=True, text=True, cwd=folder, check=True,
    )  # fmt: skip
    return json.loads(done.stdout)


@pytest.fixture(scope="module")
def outcome(tmp_path_factory: pytest.TempPathFactory) -> dict:
    folder = tmp_path_factory.mktemp("mutants")
    (folder / "empty.txt").write_text("  \n")
    (folder / "some.txt").write_text("some words to measure on\n" * 50)
    (folder / "good.yaml").write_text(GOOD)
    for index, (_, old, new, *_) in enumerate(MUTANTS):
        assert GOOD.count(old) >= 1, old
        text = GOOD.replace(old, new, 1)
        if "some.txt" in new:
            text = text.replace("    source: demo\n", "    source: some.txt\n")
        (folder / f"mutant-{index:02}.yaml").write_text(text)
    return planned_apart(folder)


def test_the_recipe_they_are_made_from_is_good(outcome: dict) -> None:
    assert outcome["found"]["good"] is None


@pytest.mark.parametrize("index", range(len(MUTANTS)), ids=[m[0] for m in MUTANTS])
def test_mutant_is_refused_where_it_is_wrong(outcome: dict, index: int) -> None:
    _, _, _, line, key, word = MUTANTS[index]
    found = outcome["found"][f"mutant-{index:02}"]
    assert found is not None, "accepted"
    assert found[:2] == [line, key], found
    assert word in found[2]


def test_no_torch_and_no_tensor_was_loaded(outcome: dict) -> None:
    assert outcome["torch"] is False
    assert outcome["tensors"] is False
