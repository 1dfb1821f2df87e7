"""The convert step: the same values in another layout, linear by linear."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace

import torch
from torch import Tensor

from llmopt.blockwalk.sink import PartResults, Record, Sink
from llmopt.blockwalk.weights import LiveWeights
from llmopt.errors import RequestError, about
from llmopt.formats.checkpoint import Checkpoint
from llmopt.formats.codec import codec_of, decode
from llmopt.formats.layout import layout_of
from llmopt.formats.quantization import read_contents
from llmopt.formats.shards import ShardWriter
from llmopt.formats.stacks import whole
from llmopt.grids.base import QuantizedTensor, joined
from llmopt.grids.ggml import BlockTensor
from llmopt.grids.ggml.affine import from_blocks
from llmopt.grids.recode import recode
from llmopt.methods.quantize.base import ScaleCheck
from llmopt.methods.quantize.settings import RtnSettings
from llmopt.model.apply import own_config
from llmopt.model.change import Change
from llmopt.model.layout import Layout
from llmopt.model.ledger import LedgerEntry, Measured
from llmopt.specs import FORMATS
from llmopt.specs.formats import PLAIN
from llmopt.step import Outcome, Work
from llmopt.verbs.convert.layouts import conversions
from llmopt.verbs.convert.settings import CheckpointTarget, ConvertSettings, PlainTarget
from llmopt.verbs.shared.config import config_changes
from llmopt.verbs.shared.records import RoundingErrors, certificate
from llmopt.verbs.shared.settings import Solving
from llmopt.verbs.shared.side_files import copy_side_files, loading, write_config
from llmopt.verbs.shared.solving import CHUNK, Solver

#: what is rounded anew goes to the nearest values, at the scales with the least squared error
_NEAREST = RtnSettings(scale_search="mse")


def run(work: Work) -> Outcome:
    """Convert the parent model into `work.folder`."""
    parent = work.input()
    checkpoint, contents = Checkpoint.open(parent.path), read_contents(parent.path)
    # no plan knows what a budget chose: what counts is what the parent holds now
    found = conversions(contents, work.asked(ConvertSettings))
    work = replace(work, step=replace(work.step, changes=tuple(each.change for each in found)))
    conversion = _Conversion(checkpoint, work)
    conversion.survey()
    records = conversion.write()
    others = copy_side_files(checkpoint, work.folder)
    target, ledger = work.step.writes, list(conversion.carried_out(records))
    config = config_changes(contents, ledger, target)
    write_config(own_config(contents), work.folder, config, format_id=target)
    facts = loading(checkpoint.naming, ledger)
    if any(map(_is_ragged, ledger)):
        facts["ragged"] = True
    evidence = others | {"loading": facts, "certificate": certificate(ledger)}
    return Outcome(format=target, ledger=ledger, config_changes=config, evidence=evidence)


class _Conversion:
    def __init__(self, checkpoint: Checkpoint, work: Work) -> None:
        self._checkpoint, self._work, self._target = checkpoint, work, work.step.writes
        self._changes = {
            change.module: change
            for change in work.step.changes
            if change.quantized is not None or change.module in checkpoint.layers
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
        chosen = [change.quantized for change in self._changes.values() if change.quantized]
        undecided &= bool(chosen) and not any(layout.symmetric for layout in chosen)
        if not undecided and not settings.exact:
            return
        refused: list[str] = []
        centred = undecided
        for done, module in enumerate(self._changes):
            if module in self._checkpoint.layers:
                source = self._source(module)
                centred &= isinstance(source, QuantizedTensor) and bool(
                    (source.params.zero == 2 ** (source.params.bits - 1)).all()
                )
                if settings.exact and (reason := self._obstacle(module, source)):
                    refused.append(f"{module}: {reason}")
            self._work.progress("looked at", done + 1, len(self._changes))
        self._symmetric = centred
        if refused:
            more = f", and {len(refused) - 1} more" if len(refused) > 1 else ""
            raise RequestError(
                f"not exact in format {self._target}: {refused[0]}{more}",
                hint="without --exact they are rounded, and the error is reported",
            )

    def carried_out(self, records: Mapping[str, Mapping[str, object]]) -> Iterator[LedgerEntry]:
        """Every tensor of the input, and what became of it."""
        for change in self._work.step.changes:
            record = records.get(change.module, {})
            if (chosen := self._wanted(change)) is not None:
                rows, cols = change.shape
                layout = replace(chosen, desc_act=bool(record["desc_act"]))
                size = layout.bytes((rows, cols), FORMATS[self._target])
                why = str(record.get("why", change.why))  # the values may say more
                change = replace(change, layout=layout, bytes=size, why=why, options=())
            yield LedgerEntry.of_change(change, Measured.of(record))

    def write(self) -> dict[str, Record]:
        """Convert what a killed run has not; returns what the ledger keeps, by module."""
        parts: dict[str, list[str]] = defaultdict(list)
        for module in self._changes:
            block = self._checkpoint.naming.block_of(module)
            parts["outside" if block is None else f"block-{block:05d}"].append(module)
        writer = ShardWriter(self._work.state / "parts")
        sink, done = Sink(writer, self._codec), set(writer.parts())
        records: dict[str, Record] = {}
        for count, (part, modules) in enumerate(parts.items()):
            if part not in done:
                results = PartResults()
                for module in modules:
                    self._convert(module, results)
                sink.write(part, results)
            records |= sink.summary(part)[1]
            self._work.progress("parts", count + 1, len(parts))
        for name, tensor in self._checkpoint.stored.items():
            replaced = name.removesuffix(".weight") in self._changes and name.endswith(".weight")
            if name not in self._checkpoint.parts and not replaced:
                sink.keep(name, tensor)
        writer.finalize(self._work.folder, stacks=whole(self._checkpoint.naming))
        return records

    def _wanted(self, change: Change) -> Layout | None:
        chosen = change.quantized
        return replace(chosen, symmetric=True) if chosen and self._symmetric else chosen

    def _convert(self, module: str, results: PartResults) -> None:
        chosen = self._wanted(self._changes[module])
        if module not in self._checkpoint.layers:
            assert chosen is not None
            pieces = LiveWeights(self._checkpoint).pieces(module, CHUNK)
            rounded, compared = self._rounded(module, pieces, chosen)
            results.quantized[module] = rounded
            results.records[module] = _record(compared, rounded, "rounded")
            return
        values = _finite(module, self._checkpoint.weight(module))
        if chosen is None:
            self._decode(module, values, results)
            return
        source = self._source(module)
        moved = self._moved(source, chosen)
        how = "moved"
        if isinstance(moved, str):
            how, moved = f"rounded: {moved}", self._rounded(module, [values], chosen)[0]
        elif isinstance(source, str) or not _same_codes(moved, source):
            how = "recoded"
        results.quantized[module] = moved
        # what is written is what counts: it is unpacked again before anything is claimed of it
        assert self._codec is not None
        back = self._codec.unpack(self._codec.pack(moved), layout_of(moved))
        record = _record(RoundingErrors.of(decode(back), values), moved, how)
        if isinstance(source, QuantizedTensor) and source.activations != chosen.activations:
            record |= {"exact": False, "why": f"{source.activations} activations are not kept"}
        results.records[module] = record

    def _decode(self, module: str, values: Tensor, results: PartResults) -> None:
        plain = values.to(self._dtype)
        if not bool(plain.isfinite().all()):
            raise RequestError(f"{module} has values outside {self._dtype}", hint="--dtype float32")
        transposed = self._checkpoint.naming.transposed(module)
        results.dense[f"{module}.weight"] = (plain.T if transposed else plain).contiguous()
        results.records[module] = _record(RoundingErrors.of(plain, values), None, "decoded")

    def _source(self, module: str) -> QuantizedTensor | str:
        """A quantized linear as integers, or why it is none."""
        found = self._checkpoint.read_layer(module)
        return from_blocks(found) if isinstance(found, BlockTensor) else found

    def _obstacle(self, module: str, source: QuantizedTensor | str) -> str | None:
        """What stands in the way of an exact copy of a quantized linear."""
        chosen = self._wanted(self._changes[module])
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

    def _rounded(
        self, module: str, pieces: Iterable[Tensor], chosen: Layout
    ) -> tuple[QuantizedTensor, RoundingErrors]:
        """The nearest values for rows of a weight that come some at a time."""
        assert self._solver is not None
        parts: list[QuantizedTensor] = []
        check, compared = ScaleCheck(), RoundingErrors()
        with about(module):
            for piece in pieces:
                weight = piece.float()
                solved = self._solver.solve(weight, None, chosen)
                assert isinstance(solved, QuantizedTensor)
                check.add(weight, solved)
                compared.add(decode(solved), weight)
                parts.append(solved)
            check.settle()
        return replace(joined(parts), activations=chosen.activations), compared


def _same_codes(moved: QuantizedTensor, source: QuantizedTensor) -> bool:
    return moved.grid == source.grid and torch.equal(moved.codes, source.codes)


def _finite(module: str, values: Tensor) -> Tensor:
    if not bool(values.isfinite().all()):
        raise RequestError(f"{module} holds NaN or infinite values")
    return values


def _record(compared: RoundingErrors, tensor: QuantizedTensor | None, how: str) -> Record:
    """Whether the values are equal, and sqrt(sum of squared differences / sum of squares)."""
    # blocks that do not fill a row have an index, too, and no need to store it
    desc_act = tensor is not None and tensor.grid != "fp8" and tensor.params.group_index is not None
    return {"exact": compared.exact, "error": compared.error, "how": how, "desc_act": desc_act}


def _is_ragged(change: Change) -> bool:
    """Whether blocks of a linear do not fill it."""
    layout = change.quantized
    return bool(layout and layout.blocks and any(w % layout.group_size for w in change.shape))
