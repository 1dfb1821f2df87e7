"""Time of `llmopt quantize` with error feedback, over a bound of what any such walk has to do.

    python benchmarks/walk_bound.py --scratch FOLDER [--results FOLDER/walk_bound]
    python benchmarks/walk_bound.py --scratch FOLDER --shape CONFIG --sequences 4 --length 64

The bound, measured before and after llmopt runs, on the same blocks and tokens with the same
threads, by torch and transformers alone, in float32:

- two forwards of every block: what flows into it before it is changed, and out of it after;
- half of x^T x (the blocks of 1024 on and above the diagonal) for each distinct input of linears;
- one Cholesky factorisation of each of those;
- one read of the weights' files.

Forwards and products are timed on --sample sequences, after a batch that does not count, and scaled
by the number of sequences; factorisations on one matrix of each width, scaled by how many there
are. Nothing is counted for choosing codes, which is llmopt's own. `llmopt quantize` is the whole
process, from start to end. A peer runs beside it with --peer, on the same tokens, or gives what it
wrote before with --peer-result.

Whole models are projected: the time of a block is that of the last one here, or, in another shape,
the bound of such a block by the speeds measured here times the ratio found here; what comes before
and after the blocks grows with the bytes written. Their memory is what `plan` says.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import steps
import tables
from process import Watch, measure

from llmopt.corpora.source import load
from llmopt.corpora.tokenize import tokenize
from llmopt.corpora.windows import calibration_windows
from llmopt.specs.families import family_of
from scripts.random_checkpoint import config_of, made, tensors_of

ROOT = Path(__file__).resolve().parent.parent
GIB = 1 << 30
#: sequences at once, as the walk takes them
BATCH = 2
TRIANGLE = 1024
PIECES = ("read", "forwards", "statistics", "factors")
HEADER = (
    "| tool | wall, s | ratio to the bound | CPU, s | ratio | peak RssAnon, GiB | unique, GiB |\n"
    "|---|---|---|---|---|---|---|"
)
WHOLE_HEADER = (
    "| whole model | blocks | a block, s | projected, h | planned memory, GiB |\n"
    "|---|---|---|---|---|"
)


@dataclass
class Clock:
    """Wall and CPU seconds of pieces of work, added up."""

    wall: dict[str, float] = field(default_factory=dict)
    cpu: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def timed(self, piece: str, times: float = 1.0) -> Iterator[None]:
        """Add what the body takes, so many times."""
        wall, cpu = time.perf_counter(), time.process_time()
        yield
        found = time.perf_counter() - wall, time.process_time() - cpu
        for kept, seconds in zip((self.wall, self.cpu), found, strict=True):
            kept[piece] = kept.get(piece, 0.0) + times * seconds


def parse() -> argparse.Namespace:
    parser = steps.model_parser(__doc__, blocks=2)
    parser.add_argument("--sequences", type=int, default=32)
    parser.add_argument("--length", type=int, default=512)
    parser.add_argument("--sample", type=int, default=8, help="sequences that pieces are timed on")
    parser.add_argument("--whole", nargs="*", default=["llama-8b", "llama-70b"])
    peer = parser.add_mutually_exclusive_group()
    peer.add_argument("--peer", action="store_true", help="run GPTQModel, too")
    peer.add_argument("--peer-result", type=Path, help="the report of its run, as JSON")
    parser.add_argument("--environments", type=Path, default=ROOT / ".venvs")
    parser.add_argument("--results", type=Path, help="write NAME.json and NAME.md")
    return parser.parse_args()


def bound(model: Path, windows: Tensor, sample: int) -> Clock:
    """The seconds of each piece, for all windows int64 [sequences, length]."""
    clock = Clock()
    with clock.timed("read"):
        for file in model.glob("*.safetensors"):
            read(file)
    hessians = _forwards_and_statistics(clock, model, windows, sample)
    widths = [len(each) for each in hessians]
    for width in set(widths):
        hessian = next(each for each in hessians if len(each) == width)
        hessian.diagonal().add_(hessian.diagonal().mean())
        hessian = hessian.triu() + hessian.triu(1).T
        with clock.timed("factors", widths.count(width)):
            torch.linalg.cholesky(hessian)
    return clock


def between(before: Clock, after: Clock) -> Clock:
    """The mean of what was measured before llmopt ran and after: a machine's speed wanders."""
    return Clock(
        wall={piece: (before.wall[piece] + after.wall[piece]) / 2 for piece in PIECES},
        cpu={piece: (before.cpu[piece] + after.cpu[piece]) / 2 for piece in PIECES},
    )


def _forwards_and_statistics(
    clock: Clock, model: Path, windows: Tensor, sample: int
) -> list[Tensor]:
    """Times both; returns E[x^T x] times some number, upper half, of each distinct input."""
    from transformers import AutoModelForCausalLM

    whole = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    decoder = whole.get_submodule(family_of(config_in(model)).base)
    batches = windows[: max(sample, BATCH)].split(BATCH)
    times = len(windows) / len(batches) / BATCH
    hessians: dict[str, Tensor] = {}
    with torch.no_grad(), _inputs(whole, config_in(model)) as inputs:
        decoder(batches[0], use_cache=False)  # does not count
        for batch in batches:
            with clock.timed("forwards", 2 * times):
                decoder(batch, use_cache=False)
            for name, x in inputs.items():
                cols = x.shape[1]
                hessian = hessians.setdefault(name, torch.zeros(cols, cols))
                with clock.timed("statistics", times):
                    half_product(hessian, x)
    return list(hessians.values())


@contextmanager
def _inputs(whole: nn.Module, config: Mapping[str, Any]) -> Iterator[dict[str, Tensor]]:
    """What flowed last into each distinct input of linears, float32 [tokens, inputs]."""
    family, seen = family_of(config), dict[str, Tensor]()
    blocks = f"{family.base}.{family.blocks}"
    firsts = [
        f"{blocks}.{i}.{inlet[0]}" for i in range(blocks_of(config)) for inlet in family.inlets
    ]

    def keep(name: str) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
        def hook(_: nn.Module, arguments: tuple[Tensor, ...]) -> None:
            seen[name] = arguments[0].flatten(0, -2)

        return hook

    with ExitStack() as stack:
        for name in firsts:
            handle = whole.get_submodule(name).register_forward_pre_hook(keep(name))
            stack.callback(handle.remove)
        yield seen


def half_product(hessian: Tensor, x: Tensor) -> None:
    """Add x^T x to the blocks of [cols, cols] on and above the diagonal; x is [tokens, cols]."""
    cols = x.shape[1]
    for start in range(0, cols, TRIANGLE):
        rows = slice(start, start + TRIANGLE)
        hessian[rows, start:].addmm_(x[:, rows].T, x[:, start:])


def read(file: Path) -> None:
    buffer = bytearray(8 << 20)
    with file.open("rb", buffering=0) as source:
        while source.readinto(buffer):
            pass


def ours(model: Path, out: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    """What `llmopt quantize` took, and when each block was done."""
    watch = Watch()
    call = _command(model, out, arguments)
    measured = measure(call, log=out.with_suffix(".log"), watch=watch)
    blocks = blocks_of(config_in(model))
    ends = [watch.when(f": blocks {done}/{blocks}") for done in range(1, blocks + 1)]
    known = [at for at in ends if at is not None]
    return asdict(measured) | {"peak_unique": watch.peak(), "block_ends": known}


def _command(model: Path, out: Path, arguments: argparse.Namespace) -> list[str | Path]:
    return [
        *steps.LLMOPT, "quantize", model, "-o", out, "--method", "gptq",
        "--grid", "int4", "--group-size", "128", "--calibration", "demo",
        "--sequences", str(arguments.sequences), "--length", str(arguments.length),
        "--gate", "none",
    ]  # fmt: skip


def peer(model: Path, windows: Tensor, arguments: argparse.Namespace) -> dict[str, Any] | None:
    """What GPTQModel took here, or in the run whose report is given; None without either."""
    if arguments.peer_result:
        own = json.loads(arguments.peer_result.read_text())
        took = own.get("seconds")
        return own | ({"seconds": sum(took.values())} if isinstance(took, dict) else {})
    if not arguments.peer:
        return None
    tokens, out = arguments.scratch / "windows.npy", arguments.scratch / "peer"
    np.save(tokens, windows.numpy())
    report, watch = out.with_suffix(".report.json"), Watch()
    call = [
        arguments.environments / "peer-gptqmodel" / "bin" / "python",
        ROOT / "benchmarks" / "peers" / "gptqmodel_quantize.py",
        "--model", model, "--calibration", tokens, "--out", out, "--report", report,
    ]  # fmt: skip
    measured = asdict(measure(call, log=out.with_suffix(".log"), watch=watch))
    return json.loads(report.read_text()) | measured | {"peak_unique": watch.peak()}


def operations(config: Mapping[str, Any], tokens: int, length: int) -> dict[str, float]:
    """Operations of the bound in one block: products of forwards, of statistics, and of factors."""
    family = family_of(config)
    found = {name: each.shape for name, each in tensors_of(config).items()}
    prefix = f"{family.base}.{family.blocks}.0"
    shapes = [[found[f"{prefix}.{name}.weight"] for name in names] for names in family.inlets]
    linears = sum(shape[0] * shape[1] for inlet in shapes for shape in inlet)
    attention = 2 * length * config["hidden_size"]
    widths = [inlet[0][1] for inlet in shapes]
    return {
        "forwards": 2 * 2 * tokens * (linears + attention),
        "statistics": tokens * sum(width**2 for width in widths),
        "factors": sum(width**3 for width in widths) / 3,
    }


def projected(
    arguments: argparse.Namespace, model: Path, clock: Clock, found: dict[str, Any]
) -> Iterator[str]:
    """Lines of the table of whole models."""
    here, tokens = config_in(model), arguments.sequences * arguments.length
    did, ends = operations(here, tokens, arguments.length), found["block_ends"]
    block = ends[-1] - ends[-2] if len(ends) > 1 else found["seconds"]
    around = max(0.0, found["seconds"] - len(ends) * block) / weights_of(here)
    each = {piece: clock.wall[piece] / blocks_of(here) for piece in did}
    ratio = block / sum(each.values())
    for shape in arguments.whole:
        config = config_of(shape)
        wanted, blocks = operations(config, tokens, arguments.length), blocks_of(config)
        seconds = ratio * sum(each[piece] / did[piece] * wanted[piece] for piece in did)
        hours = (around * weights_of(config) + blocks * seconds) / 3600
        folder = made(arguments.scratch / f"whole-{Path(shape).stem}", shape)
        plan = steps.planned(
            _command(folder, arguments.scratch / "whole", arguments), arguments.scratch
        )
        memory = max((step["memory_bytes"] for step in plan), default=float("nan"))
        said = f"| {Path(shape).stem} | {blocks} | {seconds:.0f} | {hours:.1f} "
        yield f"{said}| {memory / GIB:.2f} |"


def config_in(model: Path) -> dict[str, Any]:
    read: dict[str, Any] = json.loads((model / "config.json").read_text())
    return read


def blocks_of(config: Mapping[str, Any]) -> int:
    return int(config.get("num_hidden_layers") or config["n_layer"])


def weights_of(config: Mapping[str, Any]) -> int:
    return sum(each.elements for each in tensors_of(config).values())


def lines(clock: Clock, tools: Mapping[str, Mapping[str, Any]]) -> Iterator[str]:
    wall, cpu = sum(clock.wall.values()), sum(clock.cpu.values())
    yield f"| the bound | {wall:.0f} | | {cpu:.0f} | | | |"
    for piece in PIECES:
        yield f"| · {piece} | {clock.wall[piece]:.1f} | | {clock.cpu[piece]:.1f} | | | |"
    columns = (
        *(("seconds", 1, 0), ("seconds", wall, 2), ("cpu_seconds", 1, 0), ("cpu_seconds", cpu, 2)),
        *(("peak_anonymous", GIB, 2), ("peak_unique", GIB, 2)),
    )
    for tool, took in tools.items():
        figures = (
            f"{took[key] / unit:.{digits}f}" if key in took else "" for key, unit, digits in columns
        )
        yield f"| {tool} | {' | '.join(figures)} |"


def main() -> None:
    arguments = parse()
    scratch = arguments.scratch
    scratch.mkdir(parents=True, exist_ok=True)
    folder = scratch / f"{Path(arguments.shape).stem}-{arguments.blocks}"
    model = arguments.model or made(folder, arguments.shape, arguments.blocks)
    text = tokenize(load("demo", split="calibration", tokenizer_folder=model), model)
    windows = calibration_windows(text, arguments.sequences, arguments.length, 0)
    load_average = [os.getloadavg()[0]]
    clock = bound(model, windows, arguments.sample)
    before = dict(clock.wall)
    with tempfile.TemporaryDirectory(dir=scratch) as work:
        tools = {"llmopt": ours(model, Path(work) / "out", arguments)}
    load_average.append(os.getloadavg()[0])
    clock = between(clock, bound(model, windows, arguments.sample))
    if other := peer(model, windows, arguments):
        tools["GPTQModel"] = other
    table = [HEADER, *lines(clock, tools), "", WHOLE_HEADER]
    table += projected(arguments, model, clock, tools["llmopt"])
    asked = {name: getattr(arguments, name) for name in ("sequences", "length", "sample")}
    asked |= {"model": model.name, "blocks": blocks_of(config_in(model))}
    said = ", ".join(f"{name} {value}" for name, value in asked.items())
    said += f"; {torch.get_num_threads()} threads; load average {load_average}"
    print("\n".join([said, "", *table]))
    if arguments.results:
        document = {"asked": asked, "load_average": load_average, "bound": asdict(clock)}
        document["bound"]["wall_before"] = before
        tables.save(arguments.results, document | {"tools": tools}, said, table)


if __name__ == "__main__":
    main()
