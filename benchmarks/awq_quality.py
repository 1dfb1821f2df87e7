"""AWQ's scales, alone and before GPTQ, against the same methods without them.

    python benchmarks/awq_quality.py [--model demo] [--results FOLDER/awq_quality]

All on one asymmetric grid, with the same calibration, measured on held-out windows. Then the same
at 4 bits on a copy of the model with outlier channels: ten gains of every norm before linears
are multiplied by 100 and the columns that read them divided by it, so the copy computes the
same function; in float32, which holds it.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
import yaml
from tables import save, shown

from llmopt.formats.checkpoint import Checkpoint
from llmopt.formats.safetensors import write_file
from llmopt.sources import resolve
from llmopt.specs.folds import pairs

METHODS = {
    "rtn": {"method": "rtn"},
    "awq": {"method": "awq"},
    "gptq": {"method": "gptq"},
    "awq+gptq": {"method": "gptq", "transform": "awq"},
}
OUTLIERS, FACTOR = 10, 100.0
HEADER = "| model | bits | method | KL mean [95%] | top-1 |\n|---|---|---|---|---|"


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", default="demo", help="demo, or a model folder")
    parser.add_argument("--bits", type=int, nargs="+", default=[3, 4])
    parser.add_argument("--group-size", type=int, default=128)
    parser.add_argument("--sequences", type=int, default=128)
    parser.add_argument("--length", type=int, default=512)
    parser.add_argument("--windows", type=int, default=64)
    parser.add_argument("--calibration", default="demo")
    parser.add_argument("--evaluation", default="demo")
    parser.add_argument("--keep", type=Path, help="where artifacts go, and are found again")
    parser.add_argument("--results", type=Path, help="write NAME.json and NAME.md")
    return parser.parse_args()


def with_outliers(model: Path, folder: Path) -> Path:
    """A float32 copy with ten outlier channels into every linear that a norm feeds."""
    checkpoint = Checkpoint.open(model)
    tensors = {name: checkpoint.read(name).float() for name in checkpoint.stored}
    draw = torch.Generator().manual_seed(0)
    for block in range(checkpoint.naming.block_count):
        for pair in pairs(checkpoint.naming, block, checkpoint.config, dict.fromkeys(tensors)):
            if pair.linear:
                continue
            gain = tensors[f"{pair.source}.weight"]
            channels = torch.randperm(len(gain), generator=draw)[:OUTLIERS]
            gain[channels] *= FACTOR
            for name in pair.readers:
                tensors[f"{name}.weight"][:, channels] /= FACTOR
    folder.mkdir(parents=True, exist_ok=True)
    for name in checkpoint.side_files:
        shutil.copyfile(model / name, folder / name)
    config = {key: v for key, v in checkpoint.config.items() if key not in ("dtype", "torch_dtype")}
    (folder / "config.json").write_text(json.dumps(config | {"dtype": "float32"}))
    write_file(folder / "model.safetensors", tensors, {"format": "pt"})
    return folder


def measure(
    arguments: argparse.Namespace, model: str, bits: list[int], methods: list[str], scratch: Path
) -> dict[str, Any]:
    """Quantize and bench through one recipe; the entries of its bench.json by name."""
    common = {"group_size": arguments.group_size, "symmetric": False, "format": "gptq_v2"}
    ids = {f"{name.replace('+', '-')}-{b}": (name, b) for b in bits for name in methods}
    steps: list[dict[str, Any]] = [
        {"id": id_, "quantize": {**common, **METHODS[name], "grid": f"int{b}", "gate": []}}
        for id_, (name, b) in ids.items()
    ]
    steps.append({"id": "score", "bench": {"from": list(ids), "speed": False}})
    shape = {"sequences": arguments.sequences, "length": arguments.length}
    recipe = {
        "version": 1,
        "model": model,
        "data": {
            "calibration": {"source": arguments.calibration, **shape},
            "evaluation": {
                "source": arguments.evaluation, "windows": arguments.windows,
                "length": arguments.length,
            },
        },
        "steps": steps,
    }  # fmt: skip
    path = scratch / "recipe.yaml"
    path.write_text(yaml.safe_dump(recipe))
    command = [sys.executable, "-m", "llmopt", "run", path, "-o", scratch / "out", "--quiet"]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    entries = json.loads((scratch / "out" / "score" / "bench.json").read_text())["entries"]
    return {"/".join(map(str, ids[e["name"]])): e for e in entries if not e["is_base"]}


def line(model: str, key: str, entry: dict[str, Any]) -> str:
    method, bits = key.split("/")
    kl, same = shown(entry["metrics"]["kl.mean"]), entry["metrics"]["agreement"]["value"]
    return f"| {model} | {bits} | {method} | {kl} | {same:.2%} |"


def main() -> None:
    arguments = parse()
    print(HEADER, flush=True)
    rows, lines = {}, []
    with tempfile.TemporaryDirectory() as name:
        scratch = arguments.keep or Path(name)
        copy = with_outliers(resolve(arguments.model).folder, scratch / "copy")
        for title, model, bits, methods in (
            (f"{OUTLIERS} outlier channels", str(copy), [4], ["rtn", "awq"]),
            ("as it is", arguments.model, arguments.bits, list(METHODS)),
        ):
            folder = scratch / title.replace(" ", "-")
            folder.mkdir(exist_ok=True)
            rows[title] = measure(arguments, model, bits, methods, folder)
            lines += [line(title, key, entry) for key, entry in rows[title].items()]
            print("\n".join(lines[-len(rows[title]) :]), flush=True)
    if arguments.results:
        said = (
            f"{arguments.model}, asymmetric, groups of {arguments.group_size}, "
            f"{arguments.sequences} x {arguments.length} calibration tokens, "
            f"{arguments.windows} x {arguments.length} held-out tokens."
        )
        document = {"group_size": arguments.group_size, "rows": rows}
        save(arguments.results, document, said, [HEADER, *lines])


if __name__ == "__main__":
    main()
