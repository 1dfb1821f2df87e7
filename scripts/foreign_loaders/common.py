"""What the foreign loaders share: windows in, logits out; or a checkpoint in, weights out.

Needs only numpy, torch and safetensors.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file


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


#: the stored tensors of one linear by suffix, its name, the model's quantization_config -> its
#: weight [out, in], or None for a linear that is left unquantized
Decode = Callable[[dict[str, torch.Tensor], str, dict[str, Any]], torch.Tensor | None]


def _parts(name: str) -> tuple[str, str]:
    """The linear and the suffix in a tensor's name; bitsandbytes' go on after `.weight.`."""
    module, packed, rest = name.rpartition(".weight.")
    if packed:
        return module, f"weight.{rest}"
    module, _, suffix = name.rpartition(".")
    return module, suffix


def decode_all(decode: Decode, marker: str, description: str | None) -> None:
    """Save what a package makes of each linear that has a tensor `marker`, by module name."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", type=Path, required=True, help="folder with the checkpoint")
    parser.add_argument("--out", type=Path, required=True, help=".safetensors, a weight a module")
    parser.add_argument(
        "--wide", action="store_true", help="scales in float32, so that nothing is rounded"
    )
    arguments = parser.parse_args()
    config = json.loads((arguments.model / "config.json").read_text(encoding="utf-8"))
    stored: dict[str, dict[str, torch.Tensor]] = {}
    for file in sorted(arguments.model.glob("*.safetensors")):
        for name, tensor in load_file(file).items():
            module, suffix = _parts(name)
            wide = arguments.wide and "scale" in suffix
            stored.setdefault(module, {})[suffix] = tensor.float() if wide else tensor
    found = {
        module: decode(parts, module, config["quantization_config"])
        for module, parts in stored.items()
        if marker in parts
    }
    save_file({name: w.contiguous() for name, w in found.items() if w is not None}, arguments.out)
