"""What each step of an llmopt command takes, beside what `plan` says of it."""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from process import Watch, measure

LLMOPT = (sys.executable, "-m", "llmopt")
#: what a command may end with: done, and done with a gate that failed
FINISHED = (0, 3)
#: what `plan --json` says of a step
_PREDICTED = ("step", "verb", "memory_bytes", "disk_bytes", "seconds")

Call = Sequence[str | Path]


def model_parser(described: str | None, blocks: int) -> argparse.ArgumentParser:
    """Arguments of a benchmark on some blocks of a model; `described` is its docstring."""
    parser = argparse.ArgumentParser(description=(described or "").split("\n")[0])
    parser.add_argument("--scratch", type=Path, required=True, help="a folder with room")
    parser.add_argument("--shape", default="llama-8b", help="as scripts/random_checkpoint.py has")
    parser.add_argument("--blocks", type=int, default=blocks)
    parser.add_argument("--model", type=Path, help="use this folder, and write none")
    return parser


def planned(call: Call, folder: Path) -> list[dict[str, Any]]:
    """What `plan` says of a command's steps; nothing where it refuses, which is on stderr then.

    `folder` is scratch.
    """
    recipe = folder / "recipe.yaml"
    said = subprocess.run([*call, "--print-recipe"], check=True, stdout=subprocess.PIPE)
    recipe.write_bytes(said.stdout)
    plan = [*LLMOPT, "plan", recipe, "-o", folder / "plan", "--json"]
    done = subprocess.run(plan, check=False, stdout=subprocess.PIPE)
    steps = [] if done.returncode else json.loads(done.stdout)
    return [{key: step.get(key) for key in _PREDICTED} for step in steps]


def _without_folders(line: str, call: Call) -> str:
    """A line as it would be had the command been given names, not where they lie here."""
    paths = [word for word in call if isinstance(word, Path)]
    for path in sorted(paths, key=lambda path: -len(str(path))):
        line = line.replace(str(path), path.name)
    return line


def run(call: Call, folder: Path) -> dict[str, Any]:
    """Run a command that writes into `folder`, and say what it took, whole and by steps.

    A step's figures are of the time from the line that announces it to the line that ends it.
    """
    steps, load = planned(call, folder), os.getloadavg()[0]
    watch = Watch(folder)
    measured = measure(call, log=folder / "log", check=False, watch=watch)
    if measured.code not in FINISHED:
        raise SystemExit(f"it ended with {measured.code}: {folder / 'log'}")
    for step in steps:
        began = watch.when(f"{step['step']}: {step['verb']} ...")
        ended = watch.when(f"{step['step']}: done in ")
        if began is not None and ended is not None:
            step["measured"] = {
                "memory_bytes": watch.peak(began, ended),
                "disk_bytes": watch.disk(began, ended),
                "seconds": ended - began,
                "cpu_seconds": watch.cpu_seconds(began, ended),
            }
    return {
        **asdict(measured),
        "peak_unique": watch.peak(),
        "load_average": [load, os.getloadavg()[0]],
        "steps": steps,
        "log": [f"{at:.1f} {_without_folders(line, call)}" for at, line in watch.lines],
    }
