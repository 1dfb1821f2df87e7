"""The convert step: the same values in another layout, linear by linear."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from llmopt.blockwalk.sink import PartResults, Sink
from llmopt.errors import RequestError, about
from llmopt.formats.checkpoint import Checkpoint
from llmopt.formats.codec import codec_of, decode
from llmopt.formats.layout import layout_of
from llmopt.formats.quantization import read_contents
from llmopt.formats.safetensors import ShardWriter
from llmopt.grids.base import QuantizedTensor
from llmopt.grids.ggml import BlockTensor
from llmopt.grids.ggml.affine import from_blocks
from llmopt.grids.recode import recode
from llmopt.methods.quantize.base import check_scales
from llmopt.methods.quantize.settings import RtnSettings
from llmopt.model.change import TensorFate
from llmopt.model.layout import Layout
from llmopt.model.ledger import LedgerEntry
from llmopt.specs import FORMATS
from llmopt.specs.formats import PLAIN
from llmopt.step import Outcome, Work
from llmopt.verbs.convert.layouts import conversions
from llmopt.verbs.convert.settings import CheckpointTarget, ConvertSettings, PlainTarget
from llmopt.verbs.shared.changes import unquantized
from llmopt.verbs.shared.records import certificate, ratio
from llmopt.verbs.shared.settings import Solving
from llmopt.verbs.shared.side_files import copy_side_files, write_config
from llmopt.verbs.shared.solving import Solver

#: what is rounded anew goes to the nearest values, at the scales with the least squared error
_NEAREST = RtnSettings(scale_search="mse")


def run(work: Work) -> Outcome:
    """Convert the parent model into `work.folder`."""
    parent = work.input()
    checkpoint = Checkpoint.open(parent.path)
    # no plan knows what a budget chose: what counts is what the parent holds now
    found = conversions(read_contents(parent.path), work.asked(ConvertSettings))
    work = replace(work, step=replace(work.step, fates=tuple(each.fate for each in found)))
    conversion = _Conversion(checkpoint, work)
    conversion.survey()
    records = conversion.write()
    others = copy_side_files(checkpoint, work.folder)
    others |= conversion.write_config(records)
    ledger = [_entry(fate, records.get(_module(fate))) for fate in conversion.fates()]
    evidence = others | {"certificate": certificate(ledger)}
    return Outcome(format=work.step.writes, ledger=ledger, evidence=evidence)


class _Conversion:
    def __init__(self, checkpoint: Checkpoint, work: Work) -> None:
        self._checkpoint, self._work, self._target = checkpoint, work, work.step.writes
        self._fates = {
            _module(fate): fate
            for fate in work.step.fates
            if fate.quantize is not None or _module(fate) in checkpoint.layers
        }
        self._codec = None if self._target == PLAIN else codec_of(self._target)
        nearest = Solving(self._target, "rtn", _NEAREST)
        self._solver = Solver(nearest) if self._codec else None
        target = work.asked(ConvertSettings).target
        assert isinstance(target, PlainTarget)
        self._settings, chosen = target, target.dtype
        self._dtype = checkpoint.dense_dtype if chosen == "auto" else getattr(torch, chosen)
        self._symmetric = False

    def survey(self) -> None:
        """Look at all quantized values before anything is written.

        With `exact`, RequestError naming a linear that cannot be moved as it is. Where a source
        that knows no symmetry has its zero points in the middle throughout, they stay implied.
        """
        settings = self._settings
        undecided = isinstance(settings, CheckpointTarget) and settings.symmetric is None
        asymmetric = [f for f in self._fates.values() if f.quantize and not f.quantize.symmetric]
        undecided &= bool(asymmetric) and len(asymmetric) == sum(
            fate.quantize is not None for fate in self._fates.values()
        )
        if not undecided and not settings.exact:
            return
        refused: list[str] = []
        centred = undecided
        for done, module in enumerate(self._fates):
            if module in self._checkpoint.layers:
                source = self._source(module)
                centred &= isinstance(source, QuantizedTensor) and bool(
                    (source.params.zero == 2 ** (source.params.bits - 1)).all()
                )
                if settings.exact and (reason := self._obstacle(module, source)):
                    refused.append(f"{module}: {reason}")
            self._work.progress("looked at", done + 1, len(self._fates))
        self._symmetric = centred
        if refused:
            more = f", and {len(refused) - 1} more" if len(refused) > 1 else ""
            raise RequestError(
                f"not exact in format {self._target}: {refused[0]}{more}",
                hint="without --exact they are rounded, and the error is reported",
            )

    def fates(self) -> Iterator[TensorFate]:
        """What was planned, as the survey left it."""
        for fate in self._work.step.fates:
            chosen = self._wanted(fate)
            if chosen == fate.quantize or chosen is None:
                yield fate
                continue
            rows, cols = fate.shape
            size = chosen.bytes((rows, cols), FORMATS[self._target])
            yield replace(fate, quantize=chosen, bytes=size)

    def write(self) -> dict[str, dict[str, Any]]:
        """Convert what a killed run has not; returns what the ledger keeps, by module."""
        parts: dict[str, list[str]] = defaultdict(list)
        for module in self._fates:
            block = self._checkpoint.naming.block_of(module)
            parts["outside" if block is None else f"block-{block:05d}"].append(module)
        writer = ShardWriter(self._work.state / "parts")
        sink, done = Sink(writer, self._codec), set(writer.parts())
        records: dict[str, dict[str, Any]] = {}
        for count, (part, modules) in enumerate(parts.items()):
            if part not in done:
                results = PartResults()
                for module in modules:
                    self._convert(module, results)
                sink.write(part, results)
            records |= sink.summary(part)[1]
            self._work.progress("parts", count + 1, len(parts))
        for name, tensor in self._checkpoint.stored.items():
            replaced = name.removesuffix(".weight") in self._fates and name.endswith(".weight")
            if name not in self._checkpoint.parts and not replaced:
                sink.keep(name, tensor)
        writer.finalize(self._work.folder)
        return records

    def write_config(self, records: dict[str, dict[str, Any]]) -> dict[str, Any]:
        """config.json of the result; gives what the manifest says of it."""
        layers, ragged = {}, False
        for fate in self._work.step.fates:
            module, chosen = _module(fate), self._wanted(fate)
            if chosen is not None:
                layers[module] = replace(chosen, desc_act=records[module]["desc_act"])
                if chosen.blocks and fate.shape[1] % chosen.group_size == 0:
                    layers[module] = replace(layers[module], activations=chosen.grid)
                ragged |= chosen.blocks and any(w % chosen.group_size for w in fate.shape)
        decoded = any(self._wanted(fate) is None for fate in self._fates.values())
        found = write_config(
            self._checkpoint,
            self._work.folder,
            format_id=None if self._codec is None else self._target,
            layers=layers,
            unquantized=unquantized(self._work.step.fates, self._checkpoint.naming),
            dtype=self._dtype if decoded else None,
        )
        found["loading"] |= {"ragged": ragged} if ragged else {}
        return found

    def _wanted(self, fate: TensorFate) -> Layout | None:
        chosen = fate.quantize
        return replace(chosen, symmetric=True) if chosen and self._symmetric else chosen

    def _convert(self, module: str, results: PartResults) -> None:
        chosen = self._wanted(self._fates[module])
        if module not in self._checkpoint.layers:
            assert chosen is not None
            weight = self._checkpoint.weight(module)
            results.quantized[module] = rounded = self._rounded(module, weight, chosen)
            results.records[module] = _record(decode(rounded), weight, rounded, "rounded")
            return
        values = _finite(module, self._checkpoint.weight(module))
        if chosen is None:
            self._decode(module, values, results)
            return
        source = self._source(module)
        moved = self._moved(source, chosen)
        how = "moved"
        if isinstance(moved, str):
            how, moved = f"rounded: {moved}", self._rounded(module, values, chosen)
        elif isinstance(source, str) or not _same_codes(moved, source):
            how = "recoded"
        results.quantized[module] = moved
        # what is written is what counts: it is unpacked again before anything is claimed of it
        assert self._codec is not None
        back = self._codec.unpack(self._codec.pack(moved), layout_of(moved))
        record = _record(decode(back), values, moved, how)
        if isinstance(source, QuantizedTensor) and source.activations != chosen.activations:
            record |= {"exact": False, "why": f"{source.activations} activations are not kept"}
        results.records[module] = record

    def _decode(self, module: str, values: Tensor, results: PartResults) -> None:
        plain = values.to(self._dtype)
        if not bool(plain.isfinite().all()):
            raise RequestError(f"{module} has values outside {self._dtype}", hint="--dtype float32")
        transposed = self._checkpoint.family.conv1d and module != self._checkpoint.naming.head
        results.dense[f"{module}.weight"] = (plain.T if transposed else plain).contiguous()
        results.records[module] = _record(plain.float(), values, None, "decoded")

    def _source(self, module: str) -> QuantizedTensor | str:
        """A quantized linear as integers, or why it is none."""
        found = self._checkpoint.read_layer(module)
        return from_blocks(found) if isinstance(found, BlockTensor) else found

    def _obstacle(self, module: str, source: QuantizedTensor | str) -> str | None:
        """What stands in the way of an exact copy of a quantized linear."""
        chosen = self._wanted(self._fates[module])
        if chosen is None:
            values = _finite(module, self._checkpoint.weight(module))
            lost = not torch.equal(values.to(self._dtype).float(), values)
            return f"its values are not exact in {self._dtype}" if lost else None
        if isinstance(source, QuantizedTensor) and source.activations != chosen.activations:
            return f"{source.activations} activations are not kept"
        moved = self._moved(source, chosen)
        return moved if isinstance(moved, str) else None

    def _moved(self, source: QuantizedTensor | str, chosen: Layout) -> QuantizedTensor | str:
        """The same values as the target's codec holds them, or why it cannot."""
        if isinstance(source, str):
            return source
        assert self._codec is not None
        assert self._solver is not None
        source = replace(source, activations=chosen.activations)
        moved = recode(source, self._solver.options(chosen))
        if isinstance(moved, str):
            return moved
        return self._codec.accepts(moved) or moved

    def _rounded(self, module: str, weight: Tensor, chosen: Layout) -> QuantizedTensor:
        assert self._solver is not None
        with about(module):
            solved = self._solver.solve(weight, None, chosen)
            assert isinstance(solved, QuantizedTensor)
            check_scales(weight, solved)
        return replace(solved, activations=chosen.activations)


def _module(fate: TensorFate) -> str:
    return fate.name.removesuffix(".weight")


def _same_codes(moved: QuantizedTensor, source: QuantizedTensor) -> bool:
    return moved.grid == source.grid and torch.equal(moved.codes, source.codes)


def _finite(module: str, values: Tensor) -> Tensor:
    if not bool(values.isfinite().all()):
        raise RequestError(f"{module} holds NaN or infinite values")
    return values


def _record(
    found: Tensor, values: Tensor, tensor: QuantizedTensor | None, how: str
) -> dict[str, Any]:
    """Whether the values are equal, and sqrt(sum of squared differences / sum of squares)."""
    exact = torch.equal(found, values)
    change = (found - values).double()
    error = 0.0 if exact else ratio(change.square().sum(), values.double().square().sum())
    # blocks that do not fill a row have an index, too, and no need to store it
    desc_act = tensor is not None and tensor.grid != "fp8" and tensor.params.group_index is not None
    return {"exact": exact, "error": error, "how": how, "desc_act": desc_act}


def _entry(fate: TensorFate, record: dict[str, Any] | None) -> LedgerEntry:
    """What the ledger says of a tensor."""
    entry: dict[str, Any] = {"name": fate.name, "shape": list(fate.shape), "why": fate.why}
    if record is None:
        return LedgerEntry(**entry, action=fate.action, to=None)
    if fate.quantize is None:
        return LedgerEntry(**(entry | {"action": fate.action, "to": None} | record))
    bits = round(fate.bytes * 8 / math.prod(fate.shape), 4)
    to = {"action": fate.action, "to": fate.quantize.label, "bits_per_weight": bits}
    return LedgerEntry(**(entry | to | record))  # a record may know more of why
