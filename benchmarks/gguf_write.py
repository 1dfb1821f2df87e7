"""Time of writing a checkpoint as an F16 GGUF file, over that of a plain copy of the file.

    python benchmarks/gguf_write.py [--dtype bfloat16] [--blocks 16] [--runs 5] [--results FILE]

A Llama of width 1024 with random weights, made in a temporary folder (--folder says where); each
run copies the safetensors file and then writes the GGUF file, both to disk (fsync), so that what
else the machine does falls on both. The first run, which loads libraries, is not counted.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from scripts.random_checkpoint import write_model as write_checkpoint
from tests.gguf_files import write_model

CONFIG = {
    "model_type": "llama",
    "hidden_size": 1024,
    "intermediate_size": 2816,
    "num_attention_heads": 16,
    "num_key_value_heads": 8,
    "vocab_size": 16000,
    "tie_word_embeddings": True,
}


def copy(source: Path, target: Path) -> None:
    """A plain copy, on disk when it returns."""
    with source.open("rb") as reading, target.open("wb") as writing:
        shutil.copyfileobj(reading, writing, 8 << 20)
        os.fsync(writing.fileno())


def seconds(work: Callable[[], object]) -> float:
    """The wall time of one call."""
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--dtype", default="bfloat16", choices=["bfloat16", "float16", "float32"])
    parser.add_argument("--blocks", type=int, default=16)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--results", type=Path)
    given = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(dir=given.folder) as name:
        folder = Path(name) / "model"
        config = CONFIG | {"num_hidden_layers": given.blocks}
        write_checkpoint(folder, config, dtype=getattr(torch, given.dtype))
        source = folder / "model.safetensors"
        rows = []
        for _ in range(given.runs + 1):
            plain = seconds(lambda: copy(source, folder / "copy"))
            rows.append((plain, seconds(lambda: write_model(folder, folder / "x.gguf", "F16"))))
        found = {
            "dtype": given.dtype,
            "megabytes": round(source.stat().st_size / 1e6),
            "copy_seconds": round(statistics.median(row[0] for row in rows[1:]), 3),
            "gguf_seconds": round(statistics.median(row[1] for row in rows[1:]), 3),
            "ratio": round(statistics.median(b / a for a, b in rows[1:]), 3),
        }
    print(json.dumps(found))
    if given.results:
        given.results.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
