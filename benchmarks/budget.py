"""Mixed precision to a budget against uniform settings of equal or larger size.

    python benchmarks/budget.py [--model demo] [--targets 3.5 4.5] [--results FOLDER/budget]

For every target `llmopt quantize --target-bpw` chooses settings per linear. Against it stand two
uniform settings of {bits} x {group sizes}: the one whose stored size is the nearest at or above
what was chosen, and the nearest below. All get the same method, calibration windows and options,
and are measured on the same held-out windows that neither calibration nor the allocation saw.
Ratios and their 95% intervals come from one bootstrap over windows (paired). Stored bits are read
off the written files: codes, scales, zeros and group index of the quantized linears.

--symmetric and --asymmetric say which grids both sides may use; the default is both in turn.
The format matters to sizes: GPTQ's zeros and group index are a quarter of a bit a weight and more
on so small a model, and compressed-tensors has neither for symmetric grids.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tables import save, shown

from llmopt.corpora.source import load as load_corpus
from llmopt.corpora.tokenize import tokenize
from llmopt.corpora.windows import evaluation_windows
from llmopt.evaluate.bootstrap import bootstrap_sums, interval
from llmopt.evaluate.positions import kl_divergence
from llmopt.formats.checkpoint import Checkpoint
from llmopt.formats.quantization import read_contents
from llmopt.formats.safetensors_header import read_file_headers
from llmopt.model.layout import Layout
from llmopt.runtimes.torch import load
from llmopt.sources import resolve
from llmopt.specs import FORMATS
from llmopt.verbs.shared.changes import linear_names, linear_shape

GROUP_SIZES = (-1, 128, 64, 32)
HEADER = (
    "| format | target | settings | stored bits | weight files, bytes | KL mean [95%] "
    "| budget / this [95%] | predicted | predicted / measured [95%] |\n"
    "|---|---|---|---|---|---|---|---|---|"
)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", default="demo")
    parser.add_argument("--targets", type=float, nargs="+", default=[3.5, 4.5])
    parser.add_argument("--symmetric", action="store_true", help="symmetric grids only")
    parser.add_argument("--asymmetric", action="store_true", help="asymmetric grids only")
    parser.add_argument("--formats", nargs="+", default=["gptq", "compressed-tensors"])
    parser.add_argument("--windows", type=int, default=64)
    parser.add_argument("--length", type=int, default=512)
    parser.add_argument("--sequences", type=int, default=128)
    parser.add_argument("--calibration", default="demo")
    parser.add_argument("--evaluation", default="demo")
    parser.add_argument("--keep", type=Path, help="where artifacts go, and are found again")
    parser.add_argument("--results", type=Path, help="write NAME.json and NAME.md")
    return parser.parse_args()


def uniform_sizes(folder: Path, form: str, symmetric: bool) -> dict[Layout, float]:
    """Stored bits a weight of every uniform setting, from the shapes alone."""
    contents = read_contents(folder)
    names = linear_names(contents.naming, head=False)
    tensors = [t for n, t in contents.tensors.items() if n.removesuffix(".weight") in names]
    shapes = [linear_shape(contents, tensor) for tensor in tensors]
    weights = sum(math.prod(shape) for shape in shapes)
    sizes = {}
    for bits, group in itertools.product((2, 3, 4, 8), GROUP_SIZES):
        setting = Layout(grid=f"int{bits}", group_size=group, symmetric=symmetric)
        size = sum(setting.bytes(shape, FORMATS[form]) for shape in shapes)
        sizes[setting] = size * 8 / weights
    return sizes


def rivals(sizes: dict[Layout, float], bits: float) -> list[Layout]:
    """The uniform settings nearest in size: at least as large, then smaller."""
    large = [setting for setting, size in sizes.items() if size >= bits]
    small = [setting for setting, size in sizes.items() if size < bits]
    return [min(large, key=sizes.__getitem__), max(small, key=sizes.__getitem__)]


def stored(folder: Path) -> dict[str, float]:
    """Bits a quantized weight and bytes of all weight files, as they lie there."""
    checkpoint = Checkpoint.open(folder)
    files = sorted(folder.glob("*.safetensors"))
    headers = {name: h for file in files for name, h in read_file_headers(file).items()}
    size = sum(h.nbytes for n, h in headers.items() if n.rpartition(".")[0] in checkpoint.layers)
    weights = sum(checkpoint.read_layer(name).codes.numel() for name in checkpoint.layers)
    return {"bits": size * 8 / weights, "bytes": sum(file.stat().st_size for file in files)}


def quantize(arguments: argparse.Namespace, out: Path, *options: str) -> dict[str, Any]:
    """Run the command line, unless it did before; returns the manifest."""
    command = [
        sys.executable, "-m", "llmopt", "quantize", arguments.model, "-o", str(out),
        "--method", "gptq", "--calibration", arguments.calibration,
        "--sequences", str(arguments.sequences), "--gate", "none", "--quiet", *options,
    ]  # fmt: skip
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return json.loads((out / "llmopt.json").read_text())


def divergences(arguments: argparse.Namespace, model: Path, folders: list[Path]) -> np.ndarray:
    """Mean KL from the model in nats a position, [windows, folders]."""
    corpus = load_corpus(arguments.evaluation, split="evaluation", tokenizer_folder=model)
    windows = evaluation_windows(tokenize(corpus, model), arguments.windows, arguments.length)
    base = load(model, dtype="float32", decode="once")
    engines = [load(folder, dtype="float32", decode="once") for folder in folders]
    rows = []
    for window in torch.split(windows, 1):
        ours = base.logits(window)[0, :-1].log_softmax(-1)
        theirs = (engine.logits(window)[0, :-1].log_softmax(-1) for engine in engines)
        rows.append([float(kl_divergence(ours, each).mean()) for each in theirs])
    return np.asarray(rows)


def ratio(first: np.ndarray, second: np.ndarray) -> dict[str, float]:
    """Of means over windows, with its paired interval."""
    draws = bootstrap_sums(np.stack([first, second], axis=1))
    found = interval(first.sum() / second.sum(), draws[:, 0] / draws[:, 1], len(first))
    return {"value": found.value, "low": found.low, "high": found.high}


def measure(
    arguments: argparse.Namespace, scratch: Path, form: str, symmetric: bool
) -> list[dict[str, Any]]:
    """One row a model, each target's budget first."""
    model = resolve(arguments.model).folder
    sizes = uniform_sizes(model, form, symmetric)
    mode = f"{'sym' if symmetric else 'asym'}-{form}"
    flags = ["--format", form, *([] if symmetric else ["--asymmetric"])]
    rows, folders = [], []
    for target in arguments.targets:
        out = scratch / f"budget-{target:g}-{mode}"
        found = quantize(arguments, out, "--target-bpw", f"{target:g}", *flags)
        allocation = found["evidence"]["allocation"]
        chosen = len(rows)
        rows.append({"format": form, "target": target, "budget": chosen,
                     "settings": f"chosen, {'sym' if symmetric else 'asym'}",
                     "predicted": allocation["predicted_kl"]})  # fmt: skip
        folders.append(out)
        for rival in rivals(sizes, allocation["bits_per_weight"]):
            out = scratch / f"{rival.grid}-{rival.group_size}-{mode}".replace("--1", "-row")
            group = ["--bits", str(rival.bits), "--group-size", str(rival.group_size)]
            quantize(arguments, out, *group, *flags)
            rows.append({"format": form, "target": target, "settings": rival.label,
                         "budget": chosen})  # fmt: skip
            folders.append(out)
    found = divergences(arguments, model, folders)
    for index, row in enumerate(rows):
        row |= stored(folders[index])
        row["kl"] = ratio(found[:, index], np.ones(len(found)))
        row["ratio"] = ratio(found[:, row.pop("budget")], found[:, index])
        if "predicted" in row:
            predicted = np.full(len(found), row["predicted"])
            row["predicted_ratio"] = ratio(predicted, found[:, index])
    return rows


def line(row: dict[str, Any]) -> str:
    is_budget = "predicted" in row
    predicted = f"{row['predicted']:.5f}" if is_budget else ""
    share = shown(row["predicted_ratio"], 3) if is_budget else ""
    against = "" if is_budget else shown(row["ratio"], 3)
    return (
        f"| {row['format']} | {row['target']:g} | {row['settings']} | {row['bits']:.3f} "
        f"| {row['bytes']} | {shown(row['kl'], 5)} | {against} | {predicted} | {share} |"
    )


def main() -> None:
    arguments = parse()
    modes = [True] * (not arguments.asymmetric) + [False] * (not arguments.symmetric)
    print(HEADER, flush=True)
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for form, symmetric in itertools.product(arguments.formats, modes):
            found = measure(arguments, arguments.keep or Path(folder), form, symmetric)
            print("\n".join(map(line, found)), flush=True)
            rows += found
    if arguments.results:
        names = ("model", "calibration", "evaluation", "sequences", "windows", "length")
        asked = {name: getattr(arguments, name) for name in names}
        said = ", ".join(f"{name} {value}" for name, value in asked.items())
        save(arguments.results, {"asked": asked, "rows": rows}, said, [HEADER, *map(line, rows)])


if __name__ == "__main__":
    main()
