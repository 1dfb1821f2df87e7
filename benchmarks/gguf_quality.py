"""GGUF files of the same types and bytes, against llama-quantize with an importance matrix.

    python benchmarks/gguf_quality.py [--model demo FOLDER ...] [--results FOLDER/gguf_quality]

For each model and preset: llama.cpp's `llama_model_quantize` with an importance matrix, and
`llmopt convert --method gptq`, both from the same calibration tokens; mean KL divergence to the
model on held-out windows, weights decoded and run in torch (--runtime torch), or in llama.cpp.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import yaml
from tables import save, shown

from llmopt.formats.gguf.container import read_gguf
from llmopt.formats.imatrix import read_imatrix
from llmopt.specs.presets import find_preset

PRESETS = ["Q4_K_M", "Q3_K_M", "Q2_K", "Q4_0", "IQ4_XS", "IQ3_XXS", "IQ2_XS"]
HEADER = (
    "| model | preset | MB | llama-quantize: KL [95%] | llmopt: KL [95%] | ratio | seconds |\n"
    "|---|---|---|---|---|---|---|"
)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", nargs="+", default=["demo"], help="demo, or model folders")
    parser.add_argument("--presets", nargs="+", default=PRESETS)
    parser.add_argument("--method", default="gptq", choices=["gptq", "rtn"])
    parser.add_argument("--runtime", default="torch", choices=["torch", "llama.cpp"])
    parser.add_argument("--sequences", type=int, default=128)
    parser.add_argument("--length", type=int, default=512)
    parser.add_argument("--windows", type=int, default=64)
    parser.add_argument("--calibration", default="demo")
    parser.add_argument("--evaluation", default="demo")
    parser.add_argument("--keep", type=Path, help="where files go, and are found again")
    parser.add_argument("--results", type=Path, help="write NAME.json and NAME.md")
    return parser.parse_args()


def llmopt(*arguments: Any) -> str:
    command = [sys.executable, "-m", "llmopt", *map(str, arguments), "--quiet"]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def upstream(base: Path, out: Path, preset: str, imatrix: Path) -> float:
    """Quantize as llama-quantize --imatrix does, on one thread; returns the seconds."""
    import llama_cpp

    matrix = read_imatrix(imatrix)
    entries = (llama_cpp.llama_model_imatrix_data * (len(matrix.entries) + 1))()
    kept = []
    for entry, (name, squares) in zip(entries, matrix.entries.items(), strict=False):
        values = squares.mean.flatten().tolist()
        kept.append((ctypes.c_float * len(values))(*values))
        entry.name, entry.data, entry.size = name.encode(), kept[-1], len(values)
    silent = llama_cpp.llama_log_callback(lambda *_: None)
    llama_cpp.llama_log_set(silent, ctypes.c_void_p(0))
    params = llama_cpp.llama_model_quantize_default_params()
    params.nthread, params.ftype, params.imatrix = 1, find_preset(preset).file_type, entries
    started = time.monotonic()
    paths = str(base).encode(), str(out).encode()
    if llama_cpp.llama_model_quantize(*paths, ctypes.byref(params)):
        raise SystemExit(f"llama_model_quantize failed on {base}")
    return time.monotonic() - started


def tensors(path: Path) -> dict[str, tuple[str, int]]:
    """The type and bytes of every tensor."""
    return {name: (t.type_id, t.end - t.start) for name, t in read_gguf(path).tensors.items()}


def compare(arguments: argparse.Namespace, model: str, folder: Path) -> list[dict[str, Any]]:
    """One row a preset."""
    text = ("--calibration", arguments.calibration, "--sequences", arguments.sequences)
    text += ("--length", arguments.length)
    base, imatrix = folder / "base.gguf", folder / "imatrix.gguf"
    llmopt("convert", model, "-o", base, "--to", "gguf:F32")
    llmopt("convert", model, "-o", imatrix, "--to", "imatrix", *text)
    rows = []
    for preset in arguments.presets:
        theirs, ours = folder / f"{preset}.theirs.gguf", folder / f"{preset}.gguf"
        seconds = {"llama-quantize": upstream(base, theirs, preset, imatrix)}
        started = time.monotonic()
        method = ("--method", arguments.method, "--gate", "none")
        llmopt("convert", model, "-o", ours, "--to", f"gguf:{preset}", *method, *text)
        seconds["llmopt"] = time.monotonic() - started
        if tensors(theirs) != tensors(ours):
            raise SystemExit(f"{preset}: the files have other types or sizes")
        found = bench(arguments, model, [theirs, ours], folder)
        rows.append({"preset": preset, "bytes": ours.stat().st_size, "seconds": seconds, **found})
    return rows


def bench(
    arguments: argparse.Namespace, model: str, files: list[Path], folder: Path
) -> dict[str, Any]:
    """Mean KL of both, with its interval."""
    recipe = {
        "version": 1,
        "model": model,
        "data": {
            "evaluation": {
                "source": arguments.evaluation, "windows": arguments.windows,
                "length": arguments.length,
            }
        },
        "steps": [
            {
                "id": "score",
                "bench": {
                    "from": [str(file) for file in files], "speed": False,
                    "runtime": arguments.runtime,
                },
            }
        ],
    }  # fmt: skip
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(recipe))
    llmopt("run", path, "-o", folder / f"score-{files[1].stem}")
    scored = folder / f"score-{files[1].stem}" / "score" / "bench.json"
    entries = [e for e in json.loads(scored.read_text())["entries"] if not e["is_base"]]
    theirs, ours = (entry["metrics"]["kl.mean"] for entry in entries)
    return {"llama-quantize": theirs, "llmopt": ours, "ratio": ours["value"] / theirs["value"]}


def line(model: str, row: dict[str, Any]) -> str:
    losses = [shown(row[key]) for key in ("llama-quantize", "llmopt")]
    took = " / ".join(f"{row['seconds'][key]:.0f}" for key in ("llama-quantize", "llmopt"))
    cells = [
        model,
        row["preset"],
        f"{row['bytes'] / 1e6:.2f}",
        *losses,
        f"{row['ratio']:.3f}",
        took,
    ]
    return f"| {' | '.join(cells)} |"


def main() -> None:
    arguments = parse()
    print(HEADER, flush=True)
    rows, lines = {}, []
    with tempfile.TemporaryDirectory() as name:
        for model in arguments.model:
            title = Path(model).resolve().name if Path(model).is_dir() else model
            folder = (arguments.keep or Path(name)) / title
            folder.mkdir(parents=True, exist_ok=True)
            rows[title] = compare(arguments, model, folder)
            lines += [line(title, row) for row in rows[title]]
            print("\n".join(lines[-len(rows[title]) :]), flush=True)
    if arguments.results:
        said = (
            f"Method {arguments.method}, {arguments.sequences} x {arguments.length} calibration "
            f"tokens, {arguments.windows} x {arguments.length} held-out tokens, weights run in "
            f"{arguments.runtime}. Same type and bytes of every tensor."
        )
        document = {"method": arguments.method, "rows": rows}
        save(arguments.results, document, said, [HEADER, *lines])


if __name__ == "__main__":
    main()
