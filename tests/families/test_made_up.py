"""An architecture that nobody wrote a line for goes through rtn, gptq and awq."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

REGISTERED = Path(__file__).parent / "registered"
_SAVE = """
import sys, torch
from transformers import AutoConfig, AutoModelForCausalLM
torch.manual_seed(0)
model = AutoModelForCausalLM.from_config(AutoConfig.for_model("made_up"))
with torch.no_grad():
    for p in model.parameters():
        p.add_(torch.randn_like(p) * (0.3 if p.ndim > 1 else 0.1))
model.save_pretrained(sys.argv[1])
"""
_COMPARE = """
import sys, torch
from transformers import AutoModelForCausalLM
from llmopt.runtimes.torch import load
ids = torch.randint(3, 98, (2, 16), generator=torch.Generator().manual_seed(0))
with torch.no_grad():
    wanted = AutoModelForCausalLM.from_pretrained(sys.argv[2]).eval()(input_ids=ids).logits
found = load(__import__("pathlib").Path(sys.argv[1]), dtype="float32").logits(ids)
print(float((found - wanted).abs().max() / wanted.std()))
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("made-up")
    run(folder, "-c", _SAVE, "model")
    tokenizer = {
        "version": "1.0", "truncation": None, "padding": None, "added_tokens": [],
        "normalizer": None, "post_processor": None, "decoder": None,
        "pre_tokenizer": {
            "type": "Split", "pattern": {"String": ""}, "behavior": "Isolated", "invert": False,
        },
        "model": {
            "type": "BPE", "vocab": {chr(code): code - 29 for code in range(32, 127)}, "merges": [],
        },
    }  # fmt: skip
    (folder / "model" / "tokenizer.json").write_text(json.dumps(tokenizer))
    (folder / "text.txt").write_text("Sphinx of black quartz, judge my vow! " * 60)
    return folder


def run(folder: Path, *arguments: str) -> str:
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(REGISTERED), str(Path(__file__).parents[2])]),
        "XDG_CACHE_HOME": str(folder / "cache"),
    }
    done = subprocess.run(
        [sys.executable, *arguments], cwd=folder, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize(
    "flags",
    [
        ("--method", "rtn", "--format", "compressed-tensors"),
        ("--method", "gptq", "--format", "gptq"),
        ("--method", "rtn", "--transform", "awq", "--format", "compressed-tensors"),
    ],
    ids=["rtn", "gptq", "awq"],
)
def test_it_is_quantized_without_a_line_of_code(folder: Path, flags: tuple[str, ...]) -> None:
    name = "-".join(flags[1::2])
    run(
        folder, "-m", "llmopt", "quantize", "model", "-o", name, *flags, "--grid", "int4",
        "--group-size", "32", "--calibration", "text.txt", "--sequences", "4", "--length", "32",
        "--gate", "none",
    )  # fmt: skip
    run(folder, "-m", "llmopt", "convert", name, "-o", f"{name}-hf", "--to", "hf")
    assert float(run(folder, "-c", _COMPARE, name, f"{name}-hf").splitlines()[-1]) < 1e-4
    ledger: list[dict[str, Any]] = json.loads((folder / name / "llmopt.json").read_text())["ledger"]
    quantized = {e["name"] for e in ledger if "quantized" in e["actions"]}
    assert {"trunk.stages.0.mixer.to_all.weight", "trunk.stages.1.mean.weight"} < quantized
    assert len(quantized) == 9
    folded = {e["name"] for e in ledger if "folded" in e["actions"]}
    awq = "--transform" in flags
    assert ("trunk.stages.1.first.weight" in folded) == awq


def test_it_is_looked_at_once(folder: Path) -> None:
    run(folder, "-m", "llmopt", "inspect", "model")
    kept = list((folder / "cache" / "llmopt" / "families").iterdir())
    before = [path.stat().st_mtime_ns for path in kept]
    assert "made_up" in run(folder, "-m", "llmopt", "inspect", "model")
    assert [path.stat().st_mtime_ns for path in kept] == before
    assert len(kept) == 1
