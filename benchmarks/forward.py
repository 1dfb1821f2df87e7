"""A plain forward of a text's windows by transformers, as a process of its own to be measured.

    python benchmarks/forward.py MODEL --sequences 32 --length 512

In float32, two windows at a time, hidden states alone. The windows are those that llmopt cuts from
the demo's text for calibration.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import torch
from process import measure
from transformers import AutoModelForCausalLM

from llmopt.corpora.source import load
from llmopt.corpora.tokenize import tokenize
from llmopt.corpora.windows import calibration_windows

#: sequences at once, as llmopt's walks take them
BATCH = 2


def cpu_seconds(model: Path, sequences: int, length: int) -> float:
    """User and system time of such a process."""
    sizes = ["--sequences", str(sequences), "--length", str(length)]
    return measure([sys.executable, __file__, model, *sizes]).cpu_seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("--sequences", type=int, required=True)
    parser.add_argument("--length", type=int, required=True)
    given = parser.parse_args()
    text = tokenize(load("demo", split="calibration", tokenizer_folder=given.model), given.model)
    windows = calibration_windows(text, given.sequences, given.length, 0)
    model = AutoModelForCausalLM.from_pretrained(given.model, dtype=torch.float32).base_model
    with torch.no_grad():
        for batch in windows.split(BATCH):
            model(batch, use_cache=False)


if __name__ == "__main__":
    main()
