"""GGUF files in llama.cpp and in torch, both against the original model in torch.

    python benchmarks/gguf_runtime.py [--model demo] [--results FOLDER/gguf_runtime]

For each type: mean KL divergence to the model and the share of positions whose most likely token
is the model's, in llama.cpp (keys and values in float32, no flash attention) and with the file's
weights decoded and run in torch. What they differ by is llama.cpp's arithmetic: its CPU kernels
round activations to 8 bits for most types, and to float16 for F16; a build with BLAS
(CMAKE_ARGS="-DGGML_BLAS=ON -DGGML_BLAS_VENDOR=OpenBLAS") multiplies prompts in float32.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from tables import save

TYPES = ["F32", "F16", "BF16", "Q8_0", "Q4_K_M"]
HEADER = (
    "| type | llama.cpp: KL | top-1 | torch: KL | top-1 | KL in llama.cpp less in torch |\n"
    "|---|---|---|---|---|---|"
)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", default="demo")
    parser.add_argument("--types", nargs="+", default=TYPES)
    parser.add_argument("--windows", type=int, default=10)
    parser.add_argument("--length", type=int, default=512)
    parser.add_argument("--results", type=Path)
    return parser.parse_args()


def llmopt(*arguments: object) -> None:
    command = [sys.executable, "-m", "llmopt", *map(str, arguments), "-q"]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)


def measure(arguments: argparse.Namespace, type_id: str, scratch: Path) -> dict[str, Any]:
    file = scratch / f"{type_id}.gguf"
    llmopt("convert", arguments.model, "-o", file, "--to", f"gguf:{type_id}", "--gate", "none")
    found: dict[str, Any] = {"type": type_id}
    for runtime in ("llama.cpp", "torch"):
        out = scratch / f"{type_id}-{runtime}"
        llmopt(
            "bench", file, "--against", arguments.model, "--runtime", runtime, "--no-speed",
            "--windows", arguments.windows, "--length", arguments.length, "-o", out,
        )  # fmt: skip
        entries = json.loads((out / "bench.json").read_text())["entries"]
        entry = next(entry for entry in entries if not entry["is_base"])
        found[runtime] = {
            "kl": entry["metrics"]["kl.mean"]["value"],
            "agreement": entry["metrics"]["agreement"]["value"],
        }
    return found


def line(row: dict[str, Any]) -> str:
    cpp, torch = row["llama.cpp"], row["torch"]
    shown = [f"{side['kl']:.2e} | {side['agreement']:.2%}" for side in (cpp, torch)]
    return f"| {row['type']} | {' | '.join(shown)} | {cpp['kl'] - torch['kl']:.2e} |"


def build() -> str:
    """Whether this llama.cpp was built with BLAS."""
    from llama_cpp._ggml import libggml

    find = libggml.ggml_backend_reg_by_name
    find.restype = ctypes.c_void_p
    return "built with BLAS" if find(b"BLAS") else "its own CPU kernels"


def main() -> None:
    arguments = parse()
    print(HEADER, flush=True)
    rows = []
    with tempfile.TemporaryDirectory() as name:
        for type_id in arguments.types:
            rows.append(measure(arguments, type_id, Path(name)))
            print(line(rows[-1]), flush=True)
    if arguments.results:
        said = (
            f"{arguments.model}, {arguments.windows} x {arguments.length} held-out tokens, "
            f"llama.cpp: {build()}"
        )
        save(arguments.results, {"asked": said, "rows": rows}, said, [HEADER, *map(line, rows)])


if __name__ == "__main__":
    main()
