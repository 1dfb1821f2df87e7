"""GPTQ artifacts in the packages that own the format: the same logits as in our runtime.

Run by `make compat`, which builds the two environments first. auto-gptq 0.7.1 knows version 1 of
the format only, whatever the file says (scripts/foreign_loaders/autogptq_logits.py).
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch

from llmopt.corpora.source import load as load_corpus
from llmopt.corpora.tokenize import tokenize
from llmopt.corpora.windows import evaluation_windows
from llmopt.runtimes.torch import load
from llmopt.sources import DEMO_MODEL

ROOT = Path(__file__).resolve().parents[2]
POSITIONS = (8, 256)  # windows, tokens: 2,048 positions
LOADERS = {"autogptq": "compat", "gptqmodel": "peer-gptqmodel"}

pytestmark = pytest.mark.compat


@cache
def windows() -> torch.Tensor:
    corpus = load_corpus("demo", split="evaluation", tokenizer_folder=DEMO_MODEL)
    return evaluation_windows(tokenize(corpus, DEMO_MODEL), *POSITIONS)


@pytest.fixture(scope="module")
def scratch(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("compat")


def quantized(scratch: Path, bits: int, version: str, order: str) -> Path:
    """The demo model, quantized by the command line; made once per module."""
    out = scratch / f"{version}-{bits}-{order}"
    if not out.exists():
        command = [
            sys.executable, "-m", "llmopt", "quantize", "demo", "-o", out, "--bits", str(bits),
            "--format", version, "--act-order", order, "--calibration", "demo",
            "--sequences", "16", "--length", "256", "--gate", "none", "--quiet",
        ]  # fmt: skip
        subprocess.run(command, check=True)
    return out


def run_script(
    script: str, environment: str, *options: str | Path
) -> subprocess.CompletedProcess[str]:
    """Run one of scripts/foreign_loaders in one of the environments that stay apart."""
    python = ROOT / ".venvs" / environment / "bin" / "python"
    assert python.exists(), f"no environment {environment}: run make compat"
    command = [python, ROOT / "scripts" / "foreign_loaders" / f"{script}.py", *options]
    return subprocess.run(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False
    )


def run_loader(loader: str, model: Path) -> tuple[subprocess.CompletedProcess[str], Path]:
    """Let the package compute in float16; its output, and where the logits are to be."""
    tokens, out = model.parent / "tokens.npy", model.parent / f"{loader}.npy"
    np.save(tokens, windows().numpy())
    files = ("--model", model, "--tokens", tokens, "--out", out)
    return run_script(f"{loader}_logits", LOADERS[loader], *files, "--dtype", "float16"), out


@pytest.mark.parametrize("order", ["group", "full"])
@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize(
    ("loader", "version"), [("autogptq", "gptq"), ("gptqmodel", "gptq"), ("gptqmodel", "gptq_v2")]
)
def test_same_logits(
    scratch: Path,
    loader: str,
    version: str,
    bits: int,
    order: str,
    record_property: Callable[[str, object], None],
) -> None:
    model = quantized(scratch, bits, version, order)
    done, logits = run_loader(loader, model)
    assert done.returncode == 0, done.stdout[-2000:]
    theirs = np.load(logits)
    ours = load(model, dtype="float32").logits(windows()).numpy()
    difference = float(np.linalg.norm(theirs - ours) / np.linalg.norm(ours))
    agreement = float((theirs.argmax(-1) == ours.argmax(-1)).mean())
    record_property(
        "relative difference", difference
    )  # shown by --junitxml with junit_family=xunit1
    record_property("top-1 agreement", agreement)
    assert difference < 1e-2
    assert agreement >= 0.99


def test_a_version_2_file_is_kept_from_auto_gptq(scratch: Path) -> None:
    """It would read every zero point one too high, and say nothing."""
    done, _ = run_loader("autogptq", quantized(scratch, 4, "gptq_v2", "group"))
    assert done.returncode == 1
    assert "reads only checkpoint_format gptq" in done.stdout
