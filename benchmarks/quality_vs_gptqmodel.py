"""GPTQ by llmopt and by GPTQModel 7.3.6: same model, same calibration tokens, same layout.

    python scripts/environment.py peer-gptqmodel
    python benchmarks/quality_vs_gptqmodel.py [--model demo] [--bits 4 3] [--group-size 128 32]

For every setting both tools quantize the model, one after the other, each in a process of its own
on the same cores; then `llmopt bench` measures both against the original on held-out windows.
GPTQModel runs at its own defaults (symmetric, damping 0.05, group-aware order, min-max scales) in
its own environment, llmopt at its own, with its gate off, so that neither measures itself.

Wall time is that of the whole process, imports included; "work" leaves imports out, as each tool
times itself: load, quantize and save for GPTQModel, the quantize step for llmopt. GPTQModel
compiles an extension when it first packs: one run before the first is not counted. Memory as in
benchmarks/process.py.
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

from process import Measured, measure

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results" / "quality_vs_gptqmodel"
COLUMNS = (
    "bits | group | KL llmopt | KL GPTQModel | ratio | wall, s llmopt / GPTQModel | ratio "
    "| work, s llmopt / GPTQModel | ratio | peak RssAnon, MB llmopt / GPTQModel"
)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", default="demo", help="demo, or a model folder")
    parser.add_argument("--calibration", default="demo", help="demo, or a text source of llmopt's")
    parser.add_argument("--evaluation", default="demo")
    parser.add_argument("--bits", type=int, nargs="+", default=[4, 3])
    parser.add_argument("--group-size", type=int, nargs="+", default=[128, 32])
    parser.add_argument("--sequences", type=int, default=128)
    parser.add_argument("--length", type=int, default=512)
    parser.add_argument("--windows", type=int, default=64)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--peer-python", default=ROOT / ".venvs/peer-gptqmodel/bin/python", type=Path
    )
    parser.add_argument("--results", type=Path, default=RESULTS, help="name without suffix")
    return parser.parse_args()


def export_windows(arguments: argparse.Namespace, path: Path) -> Path:
    """The calibration windows that llmopt's command line cuts, int64 [n, length]; model folder."""
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
    return folder


def run_peer(
    arguments: argparse.Namespace, model: Path, windows: Path, out: Path, bits: int, group: int
) -> dict[str, Any]:
    report = out.with_suffix(".report.json")
    command = [
        arguments.peer_python, ROOT / "benchmarks/peers/gptqmodel_quantize.py", "--model", model,
        "--calibration", windows, "--out", out, "--report", report,
        "--bits", str(bits), "--group-size", str(group),
    ]  # fmt: skip
    measured = measure(command, log=out.with_suffix(".log"))
    own = json.loads(report.read_text())
    return _figures(measured, sum(own["seconds"].values())) | {"report": own}


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


def divergences(arguments: argparse.Namespace, *artifacts: Path) -> list[dict[str, Any]]:
    """What `llmopt bench` found for each artifact, in order."""
    command = [
        sys.executable, "-m", "llmopt", "bench", *artifacts, "--against", arguments.model,
        "--evaluation", arguments.evaluation, "--windows", str(arguments.windows),
        "--length", str(arguments.length), "--no-speed", "--json", "--quiet",
    ]  # fmt: skip
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE)
    entries = {entry["name"]: entry for entry in json.loads(done.stdout)["entries"]}
    return [entries[artifact.name] for artifact in artifacts]


def compare(arguments: argparse.Namespace, scratch: Path) -> list[dict[str, Any]]:
    windows = scratch / "windows.npy"
    model = export_windows(arguments, windows)
    run_peer(arguments, model, windows, scratch / "warm-up", 4, 128)
    rows = []
    for bits in arguments.bits:
        for group in arguments.group_size:
            ours, theirs = (scratch / f"{who}-{bits}-{group}" for who in ("llmopt", "gptqmodel"))
            row: dict[str, Any] = {
                "bits": bits,
                "group_size": group,
                "load_average": os.getloadavg()[0],
                "gptqmodel": run_peer(arguments, model, windows, theirs, bits, group),
                "llmopt": run_llmopt(arguments, ours, bits, group),
            }
            for who, entry in zip(
                ("llmopt", "gptqmodel"), divergences(arguments, ours, theirs), strict=True
            ):
                row[who] |= {key: entry[key] for key in ("kl", "agreement", "bytes")}
            rows.append(row)
            print(line(row), flush=True)
    return rows


def line(row: dict[str, Any]) -> str:
    """One row of the table."""
    ours, theirs = row["llmopt"], row["gptqmodel"]

    def kl(side: dict[str, Any]) -> str:
        mean = side["kl"]["mean"]
        return f"{mean['value']:.5f} [{mean['low']:.5f}, {mean['high']:.5f}]"

    def both(key: str, unit: float = 1.0) -> str:
        return f"{ours[key] / unit:.1f} / {theirs[key] / unit:.1f}"

    ratio = ours["kl"]["mean"]["value"] / theirs["kl"]["mean"]["value"]
    return (
        f"| {row['bits']} | {row['group_size']} | {kl(ours)} | {kl(theirs)} | {ratio:.3f} "
        f"| {both('seconds')} | {ours['seconds'] / theirs['seconds']:.3f} "
        f"| {both('work_seconds')} | {ours['work_seconds'] / theirs['work_seconds']:.3f} "
        f"| {both('peak_anonymous', 1e6)} |"
    )


def main() -> None:
    arguments = parse()
    header = [f"| {COLUMNS} |", "|---" * (COLUMNS.count("|") + 1) + "|"]
    print("\n".join(header), flush=True)
    with tempfile.TemporaryDirectory() as scratch:
        rows = compare(arguments, Path(scratch))
    shown = ("model", "calibration", "evaluation", "sequences", "length", "windows", "seed")
    asked = {name: getattr(arguments, name) for name in shown}
    document = {"asked": asked, "cores": os.cpu_count(), "rows": rows}
    arguments.results.parent.mkdir(parents=True, exist_ok=True)
    arguments.results.with_suffix(".json").write_text(json.dumps(document, indent=2) + "\n")
    table = "\n".join([*header, *map(line, rows)])
    arguments.results.with_suffix(".md").write_text(f"{json.dumps(asked)}\n\n{table}\n")


if __name__ == "__main__":
    main()
