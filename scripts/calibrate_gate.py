"""What the default gate measures on sound and on damaged artifacts of one model.

    python scripts/calibrate_gate.py MODEL --calibration TEXT --evaluation TEXT [--groups 32,128]

Quantizes MODEL to 8, 4 and 3 bits with both methods, damages copies of the results in every way of
DAMAGE, and prints what the default gate sees and says. The limits in llmopt/evaluate/gates.py were
chosen from such a table of one model; what they are worth, only the table of another model tells.
Ends with 1 where a sound artifact failed or a damaged one passed.
"""

from __future__ import annotations

import argparse
import itertools
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from llmopt.evaluate.codes import weight_errors
from llmopt.evaluate.divergence import compare
from llmopt.evaluate.gates import Judge, default_gates
from llmopt.formats import gptq
from llmopt.formats.checkpoint import Checkpoint
from llmopt.formats.gptq_config import SUFFIXES
from llmopt.grids.base import AffineParams, QuantizedTensor
from llmopt.model.results import Verdict
from llmopt.runtimes.torch import load
from llmopt.sources import resolve
from llmopt.specs.metrics import Measurement, Metrics, value_of
from llmopt.step import Text
from llmopt.verbs.shared import texts as text

Stored = dict[str, Tensor]
#: changes the stored tensors of an artifact, and says what it changed
Damage = Callable[[Checkpoint, Stored], str]
#: where in a model: 0 is its first block or linear, 1 its last
Place = float


def _in_linears(
    change: Callable[[AffineParams], AffineParams], place: Place, *, whole_block: bool = False
) -> Damage:
    """Damage the parameters of one linear, or of all in one block."""

    def apply(artifact: Checkpoint, stored: Stored) -> str:
        layers = sorted(artifact.layers)
        names = [layers[round(place * (len(layers) - 1))]]
        if whole_block:
            block = artifact.naming.block_of(names[0] + ".weight")
            names = [n for n in layers if artifact.naming.block_of(n + ".weight") == block]
        for name in names:
            tensor = artifact.read_layer(name)
            _put(artifact, stored, name, replace(tensor, params=change(tensor.params)))
        return names[0] if len(names) == 1 else f"block {block}"

    return apply


def _in_codes(change: Callable[[Tensor], Tensor], place: Place) -> Damage:
    def apply(artifact: Checkpoint, stored: Stored) -> str:
        layers = sorted(artifact.layers)
        name = layers[round(place * (len(layers) - 1))]
        tensor = artifact.read_layer(name)
        _put(artifact, stored, name, replace(tensor, codes=change(tensor.codes)))
        return name

    return apply


def _put(artifact: Checkpoint, stored: Stored, name: str, tensor: QuantizedTensor) -> None:
    assert artifact.quantization is not None
    parts = gptq.pack(tensor, artifact.quantization.format)
    stored.update({f"{name}.{suffix}": part for suffix, part in parts.items()})


def _swap_blocks(place: Place) -> Damage:
    def apply(artifact: Checkpoint, stored: Stored) -> str:
        naming = artifact.naming
        first = round(place * (naming.block_count - 2))
        one, other = (f"{naming.blocks}.{index}." for index in (first, first + 1))
        for name in [name for name in stored if name.startswith(one)]:
            twin = other + name.removeprefix(one)
            stored[name], stored[twin] = stored[twin], stored[name]
        return f"blocks {first} and {first + 1}"

    return apply


def _swap_linears(artifact: Checkpoint, stored: Stored) -> str:
    """The first two linears of one shape that share an input, such as keys and values."""
    for inlet in artifact.naming.linears(0):
        for one, other in itertools.pairwise(inlet):
            if stored[f"{one}.qweight"].shape == stored[f"{other}.qweight"].shape:
                for suffix in SUFFIXES:
                    a, b = f"{one}.{suffix}", f"{other}.{suffix}"
                    stored[a], stored[b] = stored[b], stored[a]
                return f"{one} and {other.rpartition('.')[2]}"
    return "nothing"


def _zero_head(artifact: Checkpoint, stored: Stored) -> str:
    """The head, or the embedding that serves as one."""
    naming = artifact.naming
    name = f"{naming.embedding if artifact.tied else naming.head}.weight"
    stored[name] = torch.zeros_like(stored[name])
    return name


def _shift_zero(params: AffineParams) -> AffineParams:
    # downwards where upwards there is no code left
    top = 2**params.bits - 1
    return replace(params, zero=torch.where(params.zero < top, params.zero + 1, params.zero - 1))


def _scaled(factor: float) -> Callable[[AffineParams], AffineParams]:
    return lambda params: replace(params, scale=params.scale * factor)


def _scales_of_next_row(params: AffineParams) -> AffineParams:
    return replace(params, scale=params.scale.roll(1, 0), zero=params.zero.roll(1, 0))


DAMAGE: dict[str, Damage] = {
    "scales x10, first": _in_linears(_scaled(10), 0.0),
    "scales x10, middle": _in_linears(_scaled(10), 0.5),
    "scales x10, last": _in_linears(_scaled(10), 1.0),
    "scales halved": _in_linears(_scaled(0.5), 0.7),
    "sign flipped, early": _in_linears(_scaled(-1), 0.2),
    "sign flipped, late": _in_linears(_scaled(-1), 0.9),
    "zero points + 1, linear, early": _in_linears(_shift_zero, 0.1),
    "zero points + 1, linear, late": _in_linears(_shift_zero, 0.8),
    "zero points + 1, block, first": _in_linears(_shift_zero, 0.0, whole_block=True),
    "zero points + 1, block, last": _in_linears(_shift_zero, 1.0, whole_block=True),
    "scales of the next row, early": _in_linears(_scales_of_next_row, 0.3),
    "scales of the next row, late": _in_linears(_scales_of_next_row, 0.6),
    "codes of the next row": _in_codes(lambda codes: codes.roll(1, 0), 0.4),
    "codes of the next column": _in_codes(lambda codes: codes.roll(1, 1), 0.65),
    "codes upside down": _in_codes(lambda codes: codes.flip(0), 0.15),
    "codes all the same": _in_codes(torch.zeros_like, 0.55),
    "blocks swapped, first two": _swap_blocks(0.0),
    "blocks swapped, last two": _swap_blocks(1.0),
    "linears swapped": _swap_linears,
    "head zeroed": _zero_head,
}


def damaged(artifact: Path, kind: str, target: Path) -> str:
    """Write a damaged copy of an artifact of one file into `target`; says what was damaged."""
    shutil.copytree(artifact, target)
    stored = load_file(artifact / "model.safetensors")
    what = DAMAGE[kind](Checkpoint.open(artifact), stored)
    tensors = {name: tensor.contiguous() for name, tensor in stored.items()}
    save_file(tensors, target / "model.safetensors", metadata={"format": "pt"})
    return what


@dataclass(frozen=True)
class Finding:
    """What the default gate measures on one artifact, and what it says."""

    metrics: Metrics
    verdicts: list[Verdict]

    @property
    def passed(self) -> bool:
        return all(verdict.passed for verdict in self.verdicts)


class DefaultGate:
    """The default gate for artifacts of one base model on one text int64 [windows, length]."""

    def __init__(self, base: Path, windows: Tensor) -> None:
        self._base, self._windows = Checkpoint.open(base), windows
        engine = load(base, dtype="float32")
        self._logits = {tuple(w.tolist()): engine.logits(w[None]) for w in windows}

    def __call__(self, artifact: Path) -> Finding:
        checkpoint = Checkpoint.open(artifact)
        engine = load(artifact, dtype="float32", decode="once")
        bits = [layer.bits for layer in checkpoint.layers.values()]
        judge = Judge(default_gates(sum(bits) / len(bits), fewest=min(bits)))
        metrics: dict[str, Measurement] = {}
        for readings in (
            weight_errors(self._base, checkpoint),
            compare(self._of_base, engine.logits, self._windows),
        ):
            *_, last = readings
            judge.hear(last)
            metrics |= last.metrics
        return Finding(metrics, judge.verdicts())

    def _of_base(self, batch: Tensor) -> Tensor:
        return torch.cat([self._logits[tuple(window.tolist())] for window in batch])


def variants(groups: list[int]) -> dict[str, list[str]]:
    """Sound settings by name: 8, 4 and 3 bits, both methods, both kinds of zero point."""
    return {
        f"{method} {bits} bits, group {group}{', zero points' * len(asymmetric)}": [
            "--method", method, "--bits", str(bits), "--group-size", str(group), *asymmetric,
        ]
        for bits in (8, 4, 3)
        for group in groups
        for method in ("rtn", "gptq")
        for asymmetric in ([], ["--asymmetric"])
    }  # fmt: skip


def quantized(base: Path, out: Path, calibration: list[str], settings: list[str]) -> Path:
    """A sound artifact."""
    command = [
        sys.executable, "-m", "llmopt", "quantize", str(base), "-o", str(out), *settings,
        "--gate", "none", "--quiet",
        *(calibration if "gptq" in settings else ["--scale-search", "minmax"]),
    ]  # fmt: skip
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return out


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("model")
    parser.add_argument("--calibration", default="demo")
    parser.add_argument("--evaluation", default="demo")
    parser.add_argument("--field", default="text", help="JSONL column of both texts")
    parser.add_argument("--groups", default="32,128")
    parser.add_argument("--sequences", type=int, default=64)
    parser.add_argument("--windows", type=int, default=24)
    parser.add_argument("--length", type=int, default=256)
    options = parser.parse_args()
    base = resolve(options.model).folder
    held_out = Text(
        split="evaluation", name=options.evaluation, source=options.evaluation,
        field=options.field, count=options.windows, length=options.length,
    )  # fmt: skip
    judge = DefaultGate(base, text.evaluation(held_out, base)[0])
    calibration = [
        "--calibration", options.calibration, "--field", options.field,
        "--sequences", str(options.sequences), "--length", str(options.length),
    ]  # fmt: skip
    wrong = 0
    print(f"{'':52} {'KL':>9} {'agree':>6} {'offset':>7} {'gain':>6}")
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        groups = [int(group) for group in options.groups.split(",")]
        sound = []
        for name, settings in variants(groups).items():
            out = folder / name.replace(" ", "-").replace(",", "")
            sound.append((name, quantized(base, out, calibration, settings)))
            wrong += not _print(name, judge(out))
        per_bits = len(sound) // 3
        for index, kind in enumerate(DAMAGE):
            for name, path in sound[index % per_bits :: per_bits]:
                what = damaged(path, kind, folder / "damaged")
                wrong += _print(f"{name.split(',')[0]}: {kind} ({what})", judge(folder / "damaged"))
                shutil.rmtree(folder / "damaged")
    print(f"{wrong} verdicts are wrong")
    return int(wrong > 0)


def _print(name: str, found: Finding) -> bool:
    names = ("kl.mean", "agreement", "weights.offset", "weights.gain")
    kl, agreement, offset, gain = (value_of(found.metrics[metric]) for metric in names)
    failed = ", ".join(verdict.gate.split()[0] for verdict in found.verdicts if not verdict.passed)
    print(
        f"{name[:52]:52} {kl:9.2e} {agreement:6.3f} {offset:7.3f} "
        f"{gain:6.3f} {'FAILS ' + failed if failed else 'passes'}",
        flush=True,
    )
    return found.passed


if __name__ == "__main__":
    sys.exit(main())
