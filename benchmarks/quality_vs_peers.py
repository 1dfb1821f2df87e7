"""GPTQ's layout filled by llmopt and by its peers: same model, tokens, bits and group size.

    python scripts/environment.py peer-gptqmodel
    python benchmarks/quality_vs_peers.py [--model demo] [--bits 4 3] [--group-size 128 32]

For the time of a model of width 512, whose KL then says nothing:

    python scripts/random_checkpoint.py llama-512 -o MODEL
    python benchmarks/quality_vs_peers.py --model MODEL

For every setting each tool quantizes the model, one after the other, in a process of its own on
the same cores; then `llmopt bench` measures all of them against the original on held-out windows.
Peers run at their own defaults, each in its environment (benchmarks/peers says which defaults),
llmopt at its own with its gate off, so that nobody measures itself.

Wall time is that of the whole process, imports included; "work" is what each tool takes without
them: load, quantize and save for a peer, the quantize step for llmopt. GPTQModel compiles an
extension when it first packs: a short run of each peer comes before the first and does not count.
Memory as in benchmarks/process.py.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

import tables
from process import Measured, measure
from tables import shown

ROOT = Path(__file__).resolve().parent.parent
PEERS = ("gptqmodel", "autoround")
HEADER = (
    "| bits | group | tool | KL mean [95%] | ratio | top-1 | wall, s | ratio | work, s | ratio "
    "| peak RssAnon, MB |\n|---|---|---|---|---|---|---|---|---|---|---|"
)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--peers", nargs="+", choices=PEERS, default=["gptqmodel"])
    parser.add_argument("--model", default="demo", help="demo, or a model folder")
    parser.add_argument("--calibration", default="demo", help="a text source, as llmopt takes it")
    parser.add_argument("--evaluation", default="demo")
    parser.add_argument("--bits", type=int, nargs="+", default=[4, 3])
    parser.add_argument("--group-size", type=int, nargs="+", default=[128, 32])
    parser.add_argument("--sequences", type=int, default=128)
    parser.add_argument("--length", type=int, default=512)
    parser.add_argument("--windows", type=int, default=64)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--environments", type=Path, default=ROOT / ".venvs")
    parser.add_argument("--results", type=Path, help="write NAME.json and NAME.md")
    return parser.parse_args()


def export_windows(arguments: argparse.Namespace, path: Path, warm_up: Path) -> Path:
    """Save the calibration windows that llmopt's command line cuts, and eight for warming up.

    Returns the model's folder.
    """
    import numpy as np

    from llmopt.corpora.source import load
    from llmopt.corpora.tokenize import tokenize
    from llmopt.corpora.windows import calibration_windows
    from llmopt.sources import resolve

    folder = resolve(arguments.model).folder
    corpus = load(arguments.calibration, split="calibration", tokenizer_folder=folder)
    windows = calibration_windows(
        tokenize(corpus, folder), arguments.sequences, arguments.length, arguments.seed
    )
    np.save(path, windows.numpy())
    np.save(warm_up, windows[:8].numpy())
    return folder


def run_peer(
    arguments: argparse.Namespace, peer: str, inputs: tuple[Path, Path], out: Path,
    bits: int, group: int,
) -> dict[str, Any]:  # fmt: skip
    """Let `peer` quantize; inputs are the model's folder and the file of windows."""
    report = out.with_suffix(".report.json")
    command = [
        arguments.environments / f"peer-{peer}" / "bin" / "python",
        ROOT / "benchmarks" / "peers" / f"{peer}_quantize.py",
        "--model", inputs[0], "--calibration", inputs[1], "--out", out, "--report", report,
        "--bits", str(bits), "--group-size", str(group),
    ]  # fmt: skip
    measured = measure(command, log=out.with_suffix(".log"))
    own = json.loads(report.read_text())
    return own | _figures(measured, sum(own["seconds"].values()))


def run_llmopt(arguments: argparse.Namespace, out: Path, bits: int, group: int) -> dict[str, Any]:
    command = [
        sys.executable, "-m", "llmopt", "quantize", arguments.model, "-o", out, "--method", "gptq",
        "--bits", str(bits), "--group-size", str(group), "--format", "gptq",
        "--calibration", arguments.calibration, "--sequences", str(arguments.sequences),
        "--length", str(arguments.length), "--seed", str(arguments.seed),
        "--gate", "none", "--quiet",
    ]  # fmt: skip
    measured = measure(command, log=out.with_suffix(".log"))
    manifest = json.loads((out / "llmopt.json").read_text())
    record = json.loads((out / "llmopt.run.json").read_text())
    return _figures(measured, record["seconds"]) | {"settings": manifest["settings"]}


def _figures(measured: Measured, work_seconds: float) -> dict[str, Any]:
    return asdict(measured) | {"work_seconds": work_seconds}


def quality(arguments: argparse.Namespace, artifacts: list[Path]) -> dict[str, dict[str, Any]]:
    """What `llmopt bench` found, by the artifact's name."""
    command = [
        sys.executable, "-m", "llmopt", "bench", *artifacts, "--against", arguments.model,
        "--evaluation", arguments.evaluation, "--windows", str(arguments.windows),
        "--length", str(arguments.length), "--no-speed", "--json", "--quiet",
    ]  # fmt: skip
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE)
    return {entry["name"]: entry for entry in json.loads(done.stdout)["entries"]}


def one_setting(
    arguments: argparse.Namespace, inputs: tuple[Path, Path], scratch: Path, bits: int, group: int
) -> dict[str, Any]:
    """Run every tool once; figures by tool."""
    load, tools = os.getloadavg()[0], {}
    places = {tool: scratch / f"{tool}-{bits}-{group}" for tool in (*arguments.peers, "llmopt")}
    for tool, out in places.items():
        if tool == "llmopt":
            tools[tool] = run_llmopt(arguments, out, bits, group)
        else:
            tools[tool] = run_peer(arguments, tool, inputs, out, bits, group)
    found = quality(arguments, list(places.values()))
    for tool, out in places.items():
        tools[tool] |= found[out.name]["metrics"]
    return {"bits": bits, "group_size": group, "load_average_before": load, "tools": tools}


def lines(row: dict[str, Any]) -> str:
    """A setting's rows of the table; ratios are llmopt's figure over the peer's."""
    ours = row["tools"]["llmopt"]
    return "\n".join(
        f"| {row['bits']} | {row['group_size']} | {tool} "
        f"| {shown(side['kl.mean'])} | {_kl(ours) / _kl(side):.3f} "
        f"| {100 * side['agreement']['value']:.2f}% "
        f"| {side['seconds']:.1f} | {ours['seconds'] / side['seconds']:.3f} "
        f"| {side['work_seconds']:.1f} | {ours['work_seconds'] / side['work_seconds']:.3f} "
        f"| {side['peak_anonymous'] / 1e6:.0f} |"
        for tool, side in row["tools"].items()
    )


def _kl(side: dict[str, Any]) -> float:
    return float(side["kl.mean"]["value"])


def save(arguments: argparse.Namespace, rows: list[dict[str, Any]]) -> None:
    names = ("model", "calibration", "evaluation", "sequences", "length", "windows", "seed")
    asked = {name: getattr(arguments, name) for name in names}
    document = {"asked": asked, "cores": os.cpu_count(), "rows": rows}
    said = ", ".join(f"{name} {value}" for name, value in asked.items())
    said += f"; {os.cpu_count()} cores"
    tables.save(arguments.results, document, said, [HEADER, *map(lines, rows)])


def main() -> None:
    arguments = parse()
    rows = []
    print(HEADER, flush=True)
    with tempfile.TemporaryDirectory() as folder:
        scratch = Path(folder)
        windows, few = scratch / "windows.npy", scratch / "few-windows.npy"
        model = export_windows(arguments, windows, few)
        for peer in arguments.peers:
            run_peer(arguments, peer, (model, few), scratch / f"{peer}-warm-up", 4, 128)
        for bits in arguments.bits:
            for group in arguments.group_size:
                rows.append(one_setting(arguments, (model, windows), scratch, bits, group))
                print(lines(rows[-1]), flush=True)
    if arguments.results:
        save(arguments, rows)


if __name__ == "__main__":
    main()
