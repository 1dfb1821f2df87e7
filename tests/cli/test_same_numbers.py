"""What is said of one artifact is the same wherever it is said."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from llmopt.report.numbers import megabytes
from tests import models
from tests.cli.conftest import Llmopt

TEXT = "The quick brown fox jumps over the lazy dog; pack my box with five dozen jugs. "


@pytest.mark.parametrize("verb", ["quantize", "gguf"])
def test_sizes_counts_and_windows(llmopt: Llmopt, tmp_path: Path, verb: str) -> None:
    models.save_with_bytes(tmp_path / "model", "qwen3")
    (tmp_path / "held-out.txt").write_text(TEXT * 60)
    text = ["--evaluation", "held-out.txt", "--length", 24]
    if verb == "quantize":
        how = ["--method", "rtn", "--group-size", 32, "--bits", 8, *text]
        made = llmopt("quantize", "model", "-o", "out", *how, "--gate", "kl.mean < 90")
    else:
        made = llmopt(
            "convert", "model", "-o", "out", "--to", "gguf:Q8_0", "--gate", "kl.mean < 90",
            "--evaluation", "held-out.txt",
        )  # fmt: skip
    assert made.code == 0, made.err
    weights = [*(tmp_path / "out").glob("*.safetensors"), *(tmp_path / "out").glob("*.gguf")]
    size = sum(path.stat().st_size for path in weights)
    assert f"{megabytes(size)} MB of weights" in made.out
    assert " to the original, " in made.out
    assert " same top token, on 16 windows of " in made.out
    assert made.out.startswith("out: ")
    counts = made.out.partition("tensors: ")[2].partition(";")[0]
    assert "quantized" in counts

    card = (tmp_path / "out" / "README.md").read_text()
    assert f"| Size of the weights | {megabytes(size)} MB (" in card
    assert f"Tensors: {counts}" in card
    assert "on 16 windows of" in card

    inspected = llmopt("inspect", "out", "--json").document["summary"]
    assert inspected["weights"] == f"{megabytes(size)} MB"
    assert inspected["tensors"] == counts
    assert inspected["gate"].startswith("passed on 16 windows of")
    assert "on 16 windows of" in llmopt("verify", "out").out

    bench = llmopt(
        "bench", "out", "--against", "model", "--windows", 4, "--length", 24, "--no-speed",
        "--evaluation", "held-out.txt", "--json", "--html", "page.html", "--runtime", "torch",
    )  # fmt: skip
    assert bench.code == 0, bench.err
    (entry,) = (e for e in bench.document["entries"] if not e["is_base"])
    assert entry["metrics"]["size.bytes"] == size
    assert bench.document["verdict"].keys() >= {"recommended", "class", "why", "notes"}
    page = (tmp_path / "page.html").read_text()
    assert megabytes(size) in page
    assert "16 windows of" in page
    assert "4 windows of 24 tokens" in page
    manifest = json.loads((tmp_path / "out" / "llmopt.json").read_text())
    bits = card.partition("Bits per weight, all tensors | ")[2].partition(" ")[0]
    assert float(bits) == pytest.approx(entry["metrics"]["bits_per_weight"], rel=0.01)
    assert manifest["gate"]["evidence"]["metrics"]["size.bytes"] == size
