"""What the foreign loaders share: arguments, windows in, logits out. Needs only numpy and torch."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch


@dataclass(frozen=True)
class Request:
    """One call: a model folder, token windows int64 [n, length], where the logits go."""

    model: Path
    tokens: Path
    out: Path
    dtype: torch.dtype


def parse(description: str | None) -> Request:
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", type=Path, required=True, help="folder with the checkpoint")
    parser.add_argument("--tokens", type=Path, required=True, help=".npy, int64 [n, length]")
    parser.add_argument("--out", type=Path, required=True, help=".npy, float32 [n, length, vocab]")
    parser.add_argument("--dtype", choices=("float16", "bfloat16", "float32"), default="float16")
    arguments = parser.parse_args()
    return Request(
        arguments.model, arguments.tokens, arguments.out, getattr(torch, arguments.dtype)
    )


def main(load: Callable[[Request], torch.nn.Module], description: str | None) -> None:
    """Load the model, run it window by window, save float32 logits [n, length, vocab]."""
    request = parse(description)
    windows = torch.from_numpy(np.load(request.tokens)).long()
    model = load(request).eval()
    with torch.inference_mode():
        logits = [model(input_ids=row[None], use_cache=False).logits[0].float() for row in windows]
    np.save(request.out, torch.stack(logits).numpy())
