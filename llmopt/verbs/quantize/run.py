"""The quantize step: calibrate, choose codes block by block, write a checkpoint."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace

from llmopt.allocate import document
from llmopt.blockwalk import Sink, walk
from llmopt.errors import LlmoptError, RequestError
from llmopt.formats.checkpoint import Checkpoint
from llmopt.formats.codec import Codec, codec_of
from llmopt.formats.quantization import read_contents
from llmopt.formats.shards import ShardWriter
from llmopt.formats.stacks import whole
from llmopt.grids.base import Quantized
from llmopt.model.apply import own_config
from llmopt.model.change import Action, Change
from llmopt.model.contents import Contents
from llmopt.model.ledger import LedgerEntry, Measured
from llmopt.runtimes.device import pick_device
from llmopt.specs import FORMATS
from llmopt.step import Outcome, Work
from llmopt.verbs.quantize.changes import in_order, quantize_config
from llmopt.verbs.quantize.rounding import Quantize
from llmopt.verbs.quantize.settings import QuantizeSettings
from llmopt.verbs.quantize.transform import Awq
from llmopt.verbs.shared import texts as text
from llmopt.verbs.shared.changes import as_held
from llmopt.verbs.shared.side_files import copy_side_files, loading, write_config
from llmopt.verbs.shared.solving import Solver


def run(work: Work) -> Outcome:
    """Quantize the parent model into `work.folder`."""
    settings = work.asked(QuantizeSettings)
    path = work.input().path
    checkpoint, contents = Checkpoint.open(path), read_contents(path)
    others = copy_side_files(checkpoint, work.folder)
    device = pick_device(work.options.device)
    tokens, corpus = text.any_calibration(work, checkpoint.folder)
    work, allocation = _settled(work, contents)
    if not any(change.quantized for change in work.step.changes):
        raise RequestError("nothing was quantized: every linear is skipped by an override")
    codec = codec_of(settings.format)
    held = [change.module for change in work.step.changes if change.held]
    _check_held(checkpoint, held, codec)
    quantize_config(contents, work.step.changes, settings)  # refuses what no config can say
    changes = {change.module: change for change in work.step.changes}
    quantize = Quantize(Solver(settings.solving), changes, sequential=in_order(settings))
    awq = [Awq(quantize.options_of, frozenset(held))] if settings.transform == "awq" else []
    writer = ShardWriter(work.state / "parts")
    work.progress("blocks", 0, checkpoint.naming.block_count + settings.head)
    records = walk(
        checkpoint, tokens, [*awq, quantize], Sink(writer, codec),
        work.state / "walk",
        head=settings.head,
        batch_size=settings.batch_size,
        device=device,
        activations_in_file=work.step.arrangement.activations_in_file,
        on_block=lambda done, total: work.progress("blocks", done, total),
    )  # fmt: skip
    writer.finalize(work.folder, stacks=whole(checkpoint.naming))
    ledger = list(_carried_out(work.step.changes, records))
    config = quantize_config(contents, ledger, settings)
    write_config(own_config(contents), work.folder, config, format_id=settings.format)
    others |= {"loading": loading(checkpoint.naming, ledger)}
    return Outcome(
        format=settings.format,
        ledger=ledger,
        config_changes=config,
        corpus=corpus,
        evidence=others | ({"allocation": allocation} if allocation else {}),
        run={"device": str(device)},
    )


def _settled(work: Work, contents: Contents) -> tuple[Work, dict[str, object] | None]:
    """The work with all that its plan left open, and what its allocation says; None without one.

    All of that goes into the manifest, so that the allocation's own folder is not needed any more.
    """
    spec, found = FORMATS[work.step.writes], None
    # no plan knows what an earlier budget chose: what counts is what the parent holds now
    changes = tuple(as_held(work.step.changes, contents, spec.id))
    if any(change.options for change in changes):
        chosen, found = document.read(work.input("allocation").path)
        changes = tuple(document.settled(changes, chosen, spec))
    return replace(work, step=replace(work.step, changes=changes)), found


def _check_held(checkpoint: Checkpoint, held: Iterable[str], codec: Codec[Quantized]) -> None:
    """RequestError where values of what stays quantized do not fit the format, before any work."""
    for module in held:
        if reason := codec.accepts(checkpoint.read_layer(module)):
            raise RequestError(
                f"{module} is left as it came, and cannot be written so: {reason}",
                hint="make plain weights of the model first: llmopt convert --to hf",
            )


def _carried_out(
    changes: Iterable[Change], records: Mapping[str, Mapping[str, object]]
) -> Iterator[LedgerEntry]:
    """Every tensor of the input and what became of it; LlmoptError for one that nothing became."""
    for change in changes:
        record = dict(records.get(change.name, {}))
        if "transform" in record:
            done: tuple[Action, ...] = () if change.actions == ("kept",) else change.actions
            change = replace(change, actions=("folded", *done))
        if change.quantized is not None:
            if change.module not in records:
                raise LlmoptError(f"{change.name} was to be quantized and was not reached")
            record |= records[change.module]
            layout = replace(change.quantized, desc_act=bool(record["desc_act"]))
            change = replace(change, layout=layout)
        yield LedgerEntry.of_change(change, Measured.of(record))
