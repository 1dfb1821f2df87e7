"""The quantize step: calibrate, choose codes block by block, write a checkpoint."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import Tensor

from llmopt.allocate import document
from llmopt.blockwalk import Pass, Sink, walk
from llmopt.errors import LlmoptError, RequestError
from llmopt.formats.checkpoint import Checkpoint
from llmopt.formats.codec import Codec, codec_of
from llmopt.formats.safetensors import ShardWriter
from llmopt.grids.base import Quantized
from llmopt.methods.quantize.settings import Feedback, Sequential
from llmopt.model.change import TensorFate
from llmopt.model.layout import Layout
from llmopt.model.ledger import LedgerEntry
from llmopt.model.results import CorpusName
from llmopt.runtimes.device import pick_device
from llmopt.specs import FORMATS
from llmopt.step import Outcome, Work
from llmopt.verbs.quantize.rounding import Quantize
from llmopt.verbs.quantize.settings import QuantizeSettings
from llmopt.verbs.quantize.transform import Awq
from llmopt.verbs.shared import texts as text
from llmopt.verbs.shared.changes import unquantized
from llmopt.verbs.shared.side_files import copy_side_files, write_config
from llmopt.verbs.shared.solving import Solver


def run(work: Work) -> Outcome:
    """Quantize the parent model into `work.folder`."""
    settings = work.asked(QuantizeSettings)
    parent = work.input()
    checkpoint = Checkpoint.open(parent.path)
    others = copy_side_files(checkpoint, work.folder)
    device = pick_device(work.options.device)
    tokens, corpus = _calibration(work, checkpoint)
    spec = FORMATS[settings.format]
    work, allocation = _settled(work)
    codec, held = codec_of(spec.id), _held(work.step.fates)
    _check_held(checkpoint, held, codec)
    fates = {fate.name.removesuffix(".weight"): fate for fate in work.step.fates}
    quantize = Quantize(Solver(settings.solving), fates, sequential=_in_order(settings))
    passes: list[Pass] = [quantize]
    if settings.transform == "awq":
        passes.insert(0, Awq(quantize.options_of, frozenset(held)))
    writer = ShardWriter(work.state / "parts")
    work.progress("blocks", 0, checkpoint.naming.block_count + settings.head)
    records = walk(
        checkpoint, tokens, passes, Sink(writer, codec),
        work.state / "walk",
        head=settings.head,
        batch_size=settings.batch_size,
        device=device,
        on_block=lambda done, total: work.progress("blocks", done, total),
    )  # fmt: skip
    writer.finalize(work.folder)
    others |= _write_config(checkpoint, settings, work.step.fates, records, work.folder)
    return Outcome(
        format=settings.format,
        ledger=_ledger(work.step.fates, records, checkpoint),
        corpus=corpus,
        evidence=others | ({"allocation": allocation} if allocation else {}),
        run={"device": str(device)},
    )


def _in_order(settings: QuantizeSettings) -> bool:
    """Whether statistics of each linear see the quantized ones before it."""
    return isinstance(settings.solver, Sequential) and settings.solver.true_sequential


def _settled(work: Work) -> tuple[Work, dict[str, Any] | None]:
    """The work with the settings that its allocation chose, and what that says; None without one.

    All of it goes into the manifest, so that the allocation's own folder is not needed any more.
    """
    if not any(fate.options for fate in work.step.fates):
        return work, None
    found = document.read(work.input("allocation").path)
    spec = FORMATS[work.step.writes]
    fates = document.settled(work.step.fates, found.pop("linears"), spec)
    return replace(work, step=replace(work.step, fates=tuple(fates))), found


def _held(fates: tuple[TensorFate, ...]) -> dict[str, Layout]:
    """The linears that came quantized and stay so, by module name."""
    return {f.name.removesuffix(".weight"): f.held for f in fates if f.held is not None}


def _check_held(checkpoint: Checkpoint, held: Iterable[str], codec: Codec[Quantized]) -> None:
    """RequestError where values of what stays quantized do not fit the format, before any work."""
    for module in held:
        if reason := codec.accepts(checkpoint.read_layer(module)):
            raise RequestError(
                f"{module} is left as it came, and cannot be written so: {reason}",
                hint="make plain weights of the model first: llmopt convert --to hf",
            )


def _calibration(work: Work, checkpoint: Checkpoint) -> tuple[Tensor | None, CorpusName | None]:
    """The calibration windows int64 [sequences, length], and what the manifest says of them."""
    if work.step.calibration is None:
        return None, None
    return text.checked_calibration(work, checkpoint.folder)


def _write_config(
    checkpoint: Checkpoint, settings: QuantizeSettings, fates: tuple[TensorFate, ...],
    records: dict[str, Any], folder: Path,
) -> dict[str, Any]:  # fmt: skip
    layers = _held(fates)
    for fate in fates:
        module = fate.name.removesuffix(".weight")
        if fate.quantize is not None:
            layers[module] = replace(fate.quantize, desc_act=records[module]["desc_act"])
    if not any(fate.quantize for fate in fates):
        raise RequestError("nothing was quantized: every linear is skipped by an override")
    return write_config(
        checkpoint,
        folder,
        format_id=settings.format,
        layers=layers,
        unquantized=unquantized(fates, checkpoint.naming),
        damping=settings.solver.damping if isinstance(settings.solver, Feedback) else None,
        true_sequential=_in_order(settings),
    )


def _ledger(
    fates: tuple[TensorFate, ...], records: dict[str, Any], checkpoint: Checkpoint
) -> list[LedgerEntry]:
    """Every tensor of the input and what became of it."""
    ledger = []
    for fate in fates:
        entry: dict[str, Any] = {"name": fate.name, "shape": list(fate.shape), "why": fate.why}
        if fate.quantize is None:
            change = records.get(fate.name, {})
            entry |= {"action": "folded" if change else fate.action, "to": fate.to} | change
            entry |= _bits(fate) if fate.held else {}
            ledger.append(LedgerEntry(**entry))
            continue
        record = records.get(fate.name.removesuffix(".weight"))
        if record is None:
            raise LlmoptError(f"{fate.name} was to be quantized and was not reached")
        to = {"action": fate.action, "to": fate.to}
        ledger.append(LedgerEntry(**entry | record | to | _bits(fate)))
    head = f"{checkpoint.naming.head}.weight"
    if all(entry.name != head for entry in ledger):
        shares = f"shares {checkpoint.naming.embedding}.weight"
        ledger.append(LedgerEntry(name=head, shape=None, action="tied", to=None, why=shares))
    return ledger


def _bits(fate: TensorFate) -> dict[str, float]:
    return {"bits_per_weight": round(fate.bytes * 8 / math.prod(fate.shape), 4)}
