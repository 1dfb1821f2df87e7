"""A plain forward of a text's windows by transformers, as a process of its own to be measured.

    python benchmarks/forward.py MODEL --split calibration --sequences 32 --length 512 [--logits]

In float32, two windows at a time; hidden states alone, or logits, too. The windows are those that
llmopt cuts from the demo's text.
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
from llmopt.corpora.windows import calibration_windows, evaluation_windows

#: sequences at once, as llmopt's walks take them
BATCH = 2


def cpu_seconds(
    model: Path, split: str, sequences: int, length: int, *, logits: bool = False
) -> float:
    """User and system time of such a process."""
    call = [
        sys.executable, __file__, model, "--split", split, "--sequences", str(sequences),
        "--length", str(length), *(["--logits"] if logits else []),
    ]  # fmt: skip
    return measure(call).cpu_seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("--split", choices=["calibration", "evaluation"], required=True)
    parser.add_argument("--sequences", type=int, required=True)
    parser.add_argument("--length", type=int, required=True)
    parser.add_argument("--logits", action="store_true")
    given = parser.parse_args()
    text = tokenize(load("demo", split=given.split, tokenizer_folder=given.model), given.model)
    if given.split == "calibration":
        windows = calibration_windows(text, given.sequences, given.length, 0)
    else:
        windows = evaluation_windows(text, given.sequences, given.length)
    model = AutoModelForCausalLM.from_pretrained(given.model, dtype=torch.float32)
    run = model if given.logits else model.base_model
    with torch.no_grad():
        for batch in windows.split(BATCH):
            run(batch, use_cache=False)


if __name__ == "__main__":
    main()
