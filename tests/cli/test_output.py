"""What is printed is what was meant: no name is taken for markup."""

from __future__ import annotations

import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from rich.console import Console
from rich.progress import Progress

from llmopt.cli.commands import built
from llmopt.cli.output import Output, ProgressReporter, columns
from llmopt.sources import DEMO_MODEL
from tests.cli.conftest import Llmopt

ODD = "odd [bold]:x:[red] name"


def test_doctor_names_the_extras(llmopt: Llmopt) -> None:
    out = llmopt("doctor").out
    assert 'pip install "llmopt[' in out or "not installed" not in out


def test_brackets_and_colons_stay_in_every_table(llmopt: Llmopt, tmp_path: Path) -> None:
    shutil.copytree(DEMO_MODEL, tmp_path / ODD)
    inspected = llmopt("inspect", ODD)
    assert ODD in " ".join(inspected.out.split()), inspected.out
    (tmp_path / "r.yaml").write_text(
        f'version: 1\nname: "[i]{ODD}"\nmodel: "./{ODD}"\nsteps:\n  - id: q\n'
        '    quantize: {method: rtn, gate: [], overrides: [{match: "*.[uv]*_proj", grid: int8}]}\n'
    )
    planned = llmopt("plan", "r.yaml", "--tensors")
    assert f"[i]{ODD}: {ODD}" in " ".join(planned.out.split())
    assert "*.[uv]*_proj" in planned.out
    ran = llmopt("run", "r.yaml", "-o", ODD + "out")
    assert f"{ODD}out/q: gptq" in ran.out
    (tmp_path / f"{ODD}out/q/[b].txt").write_text("mine")
    assert "[b].txt" in llmopt("verify", f"{ODD}out/q").out


def test_progress_is_no_markup(capsys: pytest.CaptureFixture[str]) -> None:
    class Step:
        id = ODD
        verb = "quantize"

    console = Console(force_terminal=True, width=100)
    with Progress(*columns(), console=console) as bars:
        ProgressReporter(Output(), bars).progress(Step(), "blocks", 1, 2)  # type: ignore[arg-type]
    assert ODD in capsys.readouterr().out


def test_what_is_being_done_is_said_from_the_start(llmopt: Llmopt) -> None:
    done = llmopt("quantize", "demo", "-o", "w", "--method", "rtn", "--gate", "none")
    lines = done.err.splitlines()
    assert lines[0] == "demo: checking the request ..."
    assert lines.index("w: publishing ...") > 0
    for phase in ("hashing the inputs ...", "step 1 of 1: w ...", "w: publishing ..."):
        assert phase in lines
    quiet = llmopt("quantize", "demo", "-o", "w2", "--method", "rtn", "--gate", "none", "--quiet")
    assert quiet.err == ""


def test_a_terminal_shows_the_phase_and_the_time_within_80_characters(
    capsys: pytest.CaptureFixture[str],
) -> None:
    console = Console(force_terminal=True, width=80)
    with Progress(*columns(), console=console) as bars:
        ProgressReporter(Output(), bars).phase("w: loading torch and transformers")
    shown = capsys.readouterr().out
    assert "w: loading torch and transformers" in shown
    assert "0:00" in shown


@pytest.mark.parametrize("command", ["quantize", "convert", "run", "bench", "generate", "inspect"])
def test_every_command_that_computes_takes_threads(command: str) -> None:
    declared = built(command).params
    assert "threads" in {parameter.name for parameter in declared}


def test_threads_are_those_that_stages_compute_with(
    llmopt: Llmopt, monkeypatch: pytest.MonkeyPatch
) -> None:
    from llmopt.verbs.quantize import run as quantize

    seen, run = [], quantize.run

    def watched(work: object) -> object:
        seen.append(torch.get_num_threads())
        return run(work)  # type: ignore[arg-type]

    monkeypatch.setattr(quantize, "run", watched)
    llmopt("quantize", "demo", "-o", "w", "--method", "rtn", "--gate", "none", "--threads", 3)
    assert seen == [3]


@pytest.mark.parametrize(
    ("line", "code"),
    [("recipes schema | :", 141), ("--version | :", 141), ("--version > /dev/full", 1),
     ("--version >&-", 0), ("plan demo >&- 2>&-", 0)],
)  # fmt: skip
def test_output_that_nobody_takes_is_no_bug(line: str, code: int) -> None:
    script = f"set -o pipefail; {shlex.quote(sys.executable)} -m llmopt {line}"
    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True)
    assert done.returncode == code, done.stderr
    assert "Traceback" not in done.stderr
    assert "Exception ignored" not in done.stderr
    assert "bug" not in done.stderr
