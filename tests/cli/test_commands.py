"""The commands end to end on the bundled model: results, JSON, exit codes, what is left behind."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from llmopt.artifact import read_manifest
from llmopt.sources import DEMO_MODEL
from tests.cli.conftest import SMALL, Llmopt

RTN = ["--method", "rtn", "--gate", "none"]


def test_quantize_writes_an_artifact_that_verifies(llmopt: Llmopt, tmp_path: Path) -> None:
    done = llmopt("quantize", "demo", "-o", "w4", *RTN)
    assert done.code == 0, done.err
    assert "tensors: 35 quantized, 12 kept" in done.out
    assert sorted(p.name for p in tmp_path.iterdir()) == ["w4"]
    assert llmopt("verify", "w4").code == 0
    manifest = read_manifest(tmp_path / "w4")
    assert manifest["settings"]["scale_search"] == "mse"
    assert str(tmp_path) not in json.dumps(manifest)


def test_the_same_command_again_does_nothing(llmopt: Llmopt, tmp_path: Path) -> None:
    llmopt("quantize", "demo", "-o", "w4", *RTN)
    before = (tmp_path / "w4" / "llmopt.run.json").read_text()
    again = llmopt("quantize", "demo", "-o", "w4", *RTN, "--json")
    assert again.document[0]["reused"] is True
    assert (tmp_path / "w4" / "llmopt.run.json").read_text() == before


def test_gptq_with_its_gate_and_the_same_bytes_again(llmopt: Llmopt, tmp_path: Path) -> None:
    gates = ["--gate", "kl.mean < 90", "--gate", "agreement > 0"]
    for name in ("a/w", "b/w"):
        done = llmopt("quantize", "demo", "-o", name, *SMALL, *gates)
        assert done.code == 0, done.err
        assert "KL" in done.out
    first, second = ((tmp_path / n / "w" / "llmopt.json").read_bytes() for n in "ab")
    assert first == second
    manifest = read_manifest(tmp_path / "a" / "w")
    assert [v["passed"] for v in manifest["gates"]] == [True, True]
    assert manifest["corpus"]["name"] == "demo/calibration"
    actions = {action for entry in manifest["ledger"] for action in entry["actions"]}
    assert actions == {"quantized", "kept", "tied"}


def test_a_failed_gate_publishes_marks_and_exits_3(llmopt: Llmopt, tmp_path: Path) -> None:
    done = llmopt(
        "quantize", "demo", "-o", "w2", "--method", "rtn", "--bits", 2, "--gate", "kl.mean < 1e-9"
    )
    assert done.code == 3
    assert "quality gate failed: w2: kl.mean < 1e-09" in done.err
    assert read_manifest(tmp_path / "w2")["gates"][0]["passed"] is False
    again = llmopt(
        "quantize", "demo", "-o", "w2", "--method", "rtn", "--bits", 2, "--gate", "kl.mean < 1e-9"
    )
    assert again.code == 3


def test_bench_measures_and_gates(llmopt: Llmopt, tmp_path: Path) -> None:
    llmopt("quantize", "demo", "-o", "w8", *RTN, "--bits", 8)
    done = llmopt(
        "bench", "w8", "--windows", 2, "--length", 64, "--json", "--gate", "kl.mean < 1",
        "--html", "r.html",
    )  # fmt: skip
    assert done.code == 0, done.err
    base, w8 = done.document["entries"]
    assert base["is_base"]
    assert 0 < w8["metrics"]["kl.mean"]["value"] < 1
    assert w8["metrics"]["size.ratio"] < 1
    assert done.document["speed"].keys() == {"model", "w8"}
    assert "<html" in (tmp_path / "r.html").read_text()
    failed = llmopt(
        "bench", "w8", "--windows", 2, "--length", 64, "--gate", "kl.mean < 1e-12", "--no-speed"
    )
    assert failed.code == 3
    assert sorted(p.name for p in tmp_path.iterdir()) == ["r.html", "w8"]


def test_bench_of_a_model_alone(llmopt: Llmopt) -> None:
    done = llmopt("bench", "demo", "--windows", 2, "--length", 64, "--no-speed", "--json")
    assert done.code == 0, done.err
    assert done.document["entries"][0]["metrics"]["perplexity"]["value"] > 1


def test_a_model_against_itself_has_no_divergence(llmopt: Llmopt) -> None:
    done = llmopt(
        "bench", "demo", "--against", "demo", "--windows", 2, "--length", 64, "--no-speed", "--json"
    )
    assert done.code == 0, done.err


def test_run_reuses_and_reruns_only_what_changed(llmopt: Llmopt, tmp_path: Path) -> None:
    recipe = tmp_path / "r.yaml"
    recipe.write_text(
        "version: 1\nmodel: demo\ndata: {evaluation: {windows: 2, length: 64}}\nsteps:\n"
        "  - {id: q, matrix: {grid: [int8, int4]}, quantize: {method: rtn, gate: 'kl.mean < 90'}}\n"
        "  - {id: score, bench: {from: q, speed: false}}\n"
    )
    first = llmopt("run", recipe, "-o", "out", "--json")
    assert first.code == 0, first.err
    steps = [s["step"] for s in first.document["steps"]]
    assert steps == ["q-int8", "q-int8.gate", "q-int4", "q-int4.gate", "score"]
    assert (tmp_path / "out" / "report.html").is_file()
    second = llmopt("run", recipe, "-o", "out", "--json")
    assert all(s["reused"] for s in second.document["steps"])
    changed = llmopt(
        "run", recipe, "-o", "out", "--json", "--set", "steps.score.bench.new_tokens=9"
    )
    assert [s["step"] for s in changed.document["steps"] if not s["reused"]] == ["score"]
    plan = llmopt("plan", recipe, "-o", "out", "--json")
    assert {s["step"]: s["state"] for s in plan.document}["q-int4"] == "done"


def test_print_recipe_is_a_recipe_that_does_the_same(llmopt: Llmopt, tmp_path: Path) -> None:
    printed = llmopt(
        "quantize", "demo", "-o", "w", *RTN, "--bits", 3, "--skip", "*.down_proj", "--print-recipe"
    )
    assert printed.code == 0
    (tmp_path / "p.yaml").write_text(printed.out)
    assert llmopt("run", "p.yaml", "-o", "by-recipe").code == 0
    assert (
        llmopt("quantize", "demo", "-o", "w", *RTN, "--bits", 3, "--skip", "*.down_proj").code == 0
    )
    keys = [read_manifest(tmp_path / p)["key"] for p in ("by-recipe/w", "w")]
    assert keys[0] == keys[1]


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (["quantize", "demo"], 2, "-o"),
        (["quantise", "demo"], 2, "quantize"),
        (["quantize", "nowhere/at/all", "-o", "x"], 2, "no model folder"),
        (["quantize", "demo", "-o", "x", "--bits", "5"], 2, "2, 3, 4 or 8"),
        (["quantize", "demo", "-o", "x", "--bits", "4", "--grid", "int4"], 2, "same thing"),
        (["quantize", "demo", "-o", "x", "--group-size", "48"], 2, "does not divide"),
        (["quantize", "demo", "-o", "x", "--calibration", "gone.txt"], 2, "no such file"),
        (["quantize", "demo", "-o", "x", "--sequences", "9999"], 2, "tokens"),
        (["quantize", "demo", "-o", "x", "--device", "warp"], 2, "device"),
        (["bench", "nowhere"], 2, "nowhere"),
        (["run", "nothing.yaml"], 2, "no recipe"),
        (["verify", "gone"], 2, "does not exist"),
        (["report", "gone"], 2, "no folder"),
        (["report", ".", "-o", "x.pdf"], 2, ".html or .md"),
        (["generate", "demo", "-p", ""], 2, "prompt"),
        (["inspect", "gone-model"], 2, "gone-model"),
        (["recipes", "show", "dmeo"], 2, "demo"),
    ],
)
def test_wrong_requests_get_one_sentence(
    llmopt: Llmopt, tmp_path: Path, arguments: list[str], code: int, says: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    done = llmopt(*arguments)
    assert done.code == code, done.err
    assert says in done.err
    assert "Traceback" not in done.err
    assert list(tmp_path.iterdir()) == []


def test_errors_are_json_too(llmopt: Llmopt) -> None:
    done = llmopt("quantize", "demo", "-o", "x", "--bits", "5", "--json")
    assert done.document["error"]["exit_code"] == 2


def test_a_quantized_model_can_be_quantized_again(llmopt: Llmopt, tmp_path: Path) -> None:
    llmopt("quantize", "demo", "-o", "w8", *RTN, "--bits", "8", "--group-size", "-1")
    done = llmopt("quantize", "w8", "-o", "w3", *RTN, "--bits", "3")
    assert done.code == 0, done.err
    manifest = json.loads((tmp_path / "w3" / "llmopt.json").read_text())
    assert {e["to"] for e in manifest["ledger"] if "quantized" in e["actions"]} == {"int3 g128 sym"}


def test_input_and_output_are_never_the_same(llmopt: Llmopt, tmp_path: Path) -> None:
    llmopt("quantize", "demo", "-o", "w4", *RTN)
    done = llmopt("quantize", "w4", "-o", "w4", *RTN)
    assert done.code == 2
    assert "is the input model" in done.err
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years of work")
    done = llmopt("quantize", "demo", "-o", "mine", *RTN)
    assert done.code == 2
    assert (tmp_path / "mine" / "thesis.txt").read_text() == "years of work"


def test_verify_names_what_changed(llmopt: Llmopt, tmp_path: Path) -> None:
    llmopt("quantize", "demo", "-o", "w4", *RTN)
    with (tmp_path / "w4" / "tokenizer.json").open("a") as file:
        file.write(" ")
    done = llmopt("verify", "w4")
    assert done.code == 1
    assert "tokenizer.json" in done.err


def test_looking_commands(llmopt: Llmopt) -> None:
    llmopt("quantize", "demo", "-o", "w4", *RTN)
    assert "llama" in llmopt("inspect", "demo").out
    summary = llmopt("inspect", "w4", "--json").document["summary"]
    assert summary["quantized"] == "gptq: 35 int4 g128 sym"
    assert "int4 g128 sym" in llmopt("inspect", "w4", "--tensors").out
    assert "demo" in llmopt("recipes", "list").out
    assert "group_size" in llmopt("recipes", "show", "demo", "--effective").out
    assert llmopt("recipes", "schema").document["title"] == "llmopt recipe"
    found = llmopt("doctor", "--json").document
    backends = found["backends"]
    assert found["machine"]["int8 linears"] in ("integer products", "computed in float32")
    assert backends["llama_cpp"]["install"] == 'pip install "llmopt[llamacpp]"'


def test_generate_streams_and_repeats(llmopt: Llmopt) -> None:
    arguments = ["generate", "demo", "-p", "import os", "-n", 5, "--temperature", 0.8, "--seed", 3]
    first = llmopt(*arguments)
    assert first.code == 0, first.err
    assert first.out.startswith("import os")
    assert llmopt(*arguments).out == first.out


def test_convert_moves_integers_and_says_so(llmopt: Llmopt, tmp_path: Path) -> None:
    llmopt("quantize", "demo", "-o", "w4", *RTN)
    done = llmopt("convert", "w4", "-o", "a4", "--to", "awq", "--exact")
    assert done.code == 0, done.err
    assert "awq, 3.65 MB of weights; tensors: 35 quantized, 12 kept; 47 exact" in done.out
    assert llmopt("verify", "a4").code == 0
    assert "All 47 tensors hold exactly the values that w4 has." in (
        tmp_path / "a4" / "README.md"
    ).read_text("utf-8")
    back = llmopt("convert", "a4", "-o", "b4", "--to", "gptq", "--json")
    assert back.document[0]["manifest"]["digest"] == read_manifest(tmp_path / "w4")["digest"]


def test_convert_refuses_at_once_and_leaves_nothing(llmopt: Llmopt, tmp_path: Path) -> None:
    done = llmopt("convert", "demo", "-o", "a4", "--to", "awq", "--exact")
    assert done.code == 2
    assert "cannot be converted exactly: plain weights are rounded" in done.err
    assert list(tmp_path.iterdir()) == []


def test_convert_prints_the_recipe_that_does_the_same(llmopt: Llmopt) -> None:
    done = llmopt("convert", "demo", "-o", "a4", "--to", "awq", "--bits", 4, "--print-recipe")
    assert "convert:\n    to: awq\n    grid: int4\n" in done.out


def test_whatever_happens_to_a_tensor_is_reported(llmopt: Llmopt, tmp_path: Path) -> None:
    (tmp_path / "r.yaml").write_text(
        """
version: 1
model: demo
data:
  calibration: {source: demo, sequences: 4, length: 64}
  evaluation: {source: demo, windows: 2, length: 64}
steps:
  - id: scaled
    quantize: {method: awq, head: true, gate: []}
  - id: plain
    convert: {from: scaled, to: hf}
  - id: score
    bench: {from: [scaled, plain], speed: false}
"""
    )
    done = llmopt("run", "r.yaml", "-o", "out")
    assert done.code == 0, done.err
    assert llmopt("report", "out", "-o", "page.md").code == 0
    page = (tmp_path / "page.md").read_text("utf-8")
    ledgers = [read_manifest(tmp_path / "out" / name)["ledger"] for name in ("scaled", "plain")]
    for ledger in ledgers:
        for actions in {tuple(entry["actions"]) for entry in ledger}:
            assert " and ".join(actions).capitalize() in page
    actions = {tuple(entry["actions"]) for ledger in ledgers for entry in ledger}
    assert {("folded", "quantized"), ("folded",), ("kept",), ("decoded",)} <= actions


def test_files_that_came_with_the_model_are_carried_over_whatever_the_target(
    llmopt: Llmopt, tmp_path: Path
) -> None:
    shutil.copytree(DEMO_MODEL, tmp_path / "m")
    (tmp_path / "m" / "additional_chat_templates").mkdir()
    (tmp_path / "m" / "additional_chat_templates" / "tool.jinja").write_text("{{ messages }}")
    (tmp_path / "m" / "modeling_mine.py").write_text("")
    for number, to in enumerate(("gptq", "gguf:Q8_0")):
        ran = llmopt("convert", "m", "-o", f"out{number}", "--to", to, "--gate", "none")
        assert ran.code == 0, ran.err
        assert "left out: modeling_mine.py (code)" in " ".join((ran.out + ran.err).split())
        copy = tmp_path / f"out{number}" / "additional_chat_templates" / "tool.jinja"
        assert copy.read_text() == "{{ messages }}"
        assert not (tmp_path / f"out{number}" / "modeling_mine.py").exists()


def test_parts_of_what_engines_fuse_that_differ_are_said_and_the_card_goes_by_it(
    llmopt: Llmopt, tmp_path: Path
) -> None:
    usual = ("quantize", "demo", "--method", "rtn", "--gate", "none", "-o")
    apart = llmopt(*usual, "apart", "--skip", "model.layers.0.self_attn.v_proj")
    assert apart.code == 0, apart.err
    said = "the parts of `model.layers.0.self_attn.qkv_proj` differ in their settings"
    assert f"vLLM and SGLang cannot load it: {said}" in " ".join((apart.out + apart.err).split())
    card = (tmp_path / "apart" / "README.md").read_text()
    assert said in card
    assert "vllm serve" not in card
    together = llmopt(*usual, "together", "--skip", "model.layers.0.self_attn.[qkv]_proj")
    assert "differ in their settings" not in together.out + together.err
    assert "vllm serve" in (tmp_path / "together" / "README.md").read_text()
    three = llmopt(*usual, "three", "--bits", "3", "--asymmetric")
    assert three.code == 0, three.err
    card = (tmp_path / "three" / "README.md").read_text()
    assert "vllm serve" not in card
    assert "GPTQModel.load" in card
