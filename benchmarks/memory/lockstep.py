"""Evaluation a block at a time: its memory by depth, its time by candidates, and kills.

    python benchmarks/memory/lockstep.py --scratch FOLDER [--results FOLDER/lockstep]
    python benchmarks/memory/lockstep.py --scratch FOLDER --windows 4 --parts memory

Models of width 1024 with random weights are compared with what is quantized from them.

memory: `llmopt bench` of int4 codes beside their base under --limit, which whole models do not fit,
with 4 and with 16 blocks. Peak RssAnon may grow by 10%.
time: CPU seconds of three candidates in lockstep with their base, reading included, over four
forwards of the base in float32 by its engine, which had read it before. At most 1.15.
kills: the bench of three candidates, SIGKILLed at random moments --kills times and repeated, gives
the bench.json of an undisturbed one.

Exits with 1 where one of these does not hold.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import tables
import torch
from process import measure
from steps import LLMOPT

from llmopt.artifact import Artifact, open_artifact
from llmopt.evaluate.lockstep import Lockstep
from llmopt.evaluate.probe import Subject
from llmopt.evaluate.streamed import StreamedScores
from llmopt.formats.checkpoint import Checkpoint
from llmopt.runtimes.base import Engine
from llmopt.runtimes.choice import open_engine
from scripts.random_checkpoint import config_of, made

PARTS = ("memory", "time", "kills")
WIDTH = {
    "hidden_size": 1024, "intermediate_size": 2816, "num_attention_heads": 16,
    "num_key_value_heads": 8, "head_dim": 64, "vocab_size": 32000,
}  # fmt: skip
GRIDS = ("int4", "int8", "int3")
MOST = {"memory": 1.10, "time": 1.15}
MIB = 1 << 20


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--scratch", type=Path, required=True, help="a folder with room")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--blocks", type=int, nargs=2, default=[4, 16])
    parser.add_argument("--windows", type=int, default=16)
    parser.add_argument("--length", type=int, default=512)
    parser.add_argument("--limit", default="800MiB", help="--max-memory")
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--results", type=Path, help="write NAME.json and NAME.md")
    return parser.parse_args()


def model(scratch: Path, blocks: int) -> Path:
    """A model of so many blocks, written if it is not there."""
    config = scratch / "config.json"
    config.write_text(json.dumps(config_of("llama-1b") | WIDTH | {"tie_word_embeddings": False}))
    return made(scratch / f"model-{blocks}", str(config), blocks)


def quantized(base: Path, grid: str) -> Path:
    """Codes made from a model, if they are not there."""
    out = base.with_name(f"{base.name}-{grid}")
    call = [
        *LLMOPT, "quantize", base, "-o", out, "--method", "rtn", "--grid", grid,
        "--group-size", "128", "--gate", "none", "--quiet",
    ]  # fmt: skip
    subprocess.run(call, check=True)
    return out


def bench(asked: argparse.Namespace, base: Path, candidates: list[Path], out: Path) -> list[Any]:
    """The command that compares them under the limit."""
    return [
        *LLMOPT, "bench", *candidates, "--against", base, "-o", out, "--no-speed",
        "--windows", str(asked.windows), "--length", str(asked.length),
        "--max-memory", asked.limit, "--quiet",
    ]  # fmt: skip


def memory(asked: argparse.Namespace) -> dict[str, Any]:
    """Peak RssAnon with few and with many blocks."""
    peaks = []
    for blocks in asked.blocks:
        base = model(asked.scratch, blocks)
        made = quantized(base, "int4")
        with tempfile.TemporaryDirectory(dir=asked.scratch) as folder:
            call = bench(asked, base, [made], Path(folder) / "out")
            peaks.append(measure(call, log=asked.scratch / "log").peak_anonymous)
    return {"blocks": asked.blocks, "bytes": peaks, "ratio": peaks[1] / peaks[0]}


def timed(asked: argparse.Namespace) -> dict[str, Any]:
    """CPU seconds of a base and three candidates, over those of four forwards of the base."""
    base = model(asked.scratch, asked.blocks[1])
    folders = [base, *(quantized(base, grid) for grid in GRIDS)]
    models = [open_artifact(folder.name, folder) for folder in folders]
    shape = (asked.windows, asked.length)
    windows = torch.randint(3, 1000, shape, generator=torch.Generator().manual_seed(0))
    engine, cpu = opened(models[0]), torch.device("cpu")
    engine.logits(windows[:1])
    started = time.process_time()
    for window in windows:
        engine.logits(window[None])
    forward = time.process_time() - started
    del engine
    with tempfile.TemporaryDirectory(dir=asked.scratch) as name:
        folder = Path(name)

        def opens(each: Artifact) -> StreamedScores:
            return StreamedScores(
                Checkpoint.open(each.path), windows, folder / each.name,
                dtype=torch.float32, device=cpu,
            )  # fmt: skip

        started = time.process_time()
        lockstep = Lockstep(
            [models], windows, opens, folder, device=cpu, seed=0, progress=lambda *_: None
        )
        for each in models[1:]:
            subject = Subject(
                model=each, base=models[0], open_engine=opened, windows=windows, seed=0
            )
            for reading in lockstep.measure(subject):
                _ = reading.metrics
        seconds = time.process_time() - started
    return {"forward": forward, "lockstep": seconds, "ratio": seconds / (4 * forward)}


def opened(each: Artifact) -> Engine:
    """A model as a whole."""
    return open_engine("torch", each.path, device="cpu", dtype="float32")


def kills(asked: argparse.Namespace) -> dict[str, Any]:
    """How many of the rounds gave other numbers than an undisturbed run."""
    base = model(asked.scratch, asked.blocks[0])
    candidates = [quantized(base, grid) for grid in GRIDS]
    moments, differ, folder = random.Random(0), 0, asked.scratch / "kills"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    call = bench(asked, base, candidates, folder / "out")
    started = time.perf_counter()
    subprocess.run(call, check=True, stdout=subprocess.DEVNULL)
    whole = time.perf_counter() - started
    expected, found = (folder / "out" / "bench.json").read_bytes(), []
    for _ in range(asked.kills):
        shutil.rmtree(folder)
        folder.mkdir()
        moment = moments.uniform(0.1, 0.98) * whole
        process = subprocess.Popen(call, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            process.wait(moment)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            found.append(moment)
        subprocess.run(call, check=True, stdout=subprocess.DEVNULL)
        differ += (folder / "out" / "bench.json").read_bytes() != expected
    return {"seconds": whole, "killed_at": found, "rounds": asked.kills, "differ": differ}


def main() -> None:
    asked = parse()
    asked.scratch.mkdir(parents=True, exist_ok=True)
    asked.scratch = asked.scratch.resolve()
    found: dict[str, Any] = {}
    load_average = [os.getloadavg()[0]]
    for part, run in zip(PARTS, (memory, timed, kills), strict=True):
        if part in asked.parts:
            found[part] = run(asked)
            print(part, json.dumps(found[part]), flush=True)
            load_average.append(os.getloadavg()[0])
    failed = [part for part, most in MOST.items() if part in found and found[part]["ratio"] > most]
    failed += ["kills"] if found.get("kills", {}).get("differ") else []
    if asked.results:
        said = f"{asked.windows} windows of {asked.length} tokens, blocks of width 1024; "
        said += f"load average {load_average}"
        tables.save(asked.results, {"asked": said, **found}, said, rows(found))
    sys.exit(f"does not hold: {', '.join(failed)}" if failed else 0)


def rows(found: dict[str, Any]) -> list[str]:
    """A line for each part."""
    lines = ["| what | found |", "|---|---|"]
    if part := found.get("memory"):
        few, many = (f"{size / MIB:.0f} MiB" for size in part["bytes"])
        blocks = "{} and {} blocks".format(*part["blocks"])
        lines.append(f"| peak RssAnon of {blocks} | {few} and {many}: {part['ratio']:.3f} |")
    if part := found.get("time"):
        lines.append(
            f"| three candidates and their base, CPU | {part['lockstep']:.0f} s, "
            f"{part['ratio']:.2f} of four forwards of {part['forward']:.0f} s |"
        )
    if part := found.get("kills"):
        killed = f"{len(part['killed_at'])} kills in {part['rounds']} rounds"
        lines.append(f"| {killed} | {part['differ']} with other numbers |")
    return lines


if __name__ == "__main__":
    main()
