"""The convert step to GGUF: one file, whose linears a walk encodes and whose rest is streamed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
from torch import Tensor

from llmopt.allocate import document
from llmopt.blockwalk import Sink, walk
from llmopt.blockwalk.sink import Record
from llmopt.errors import LlmoptError, RequestError, about
from llmopt.formats.checkpoint import Checkpoint
from llmopt.formats.codec import codec_of
from llmopt.formats.gguf.export import metadata
from llmopt.formats.gguf.names import Placement
from llmopt.formats.gguf.tokenizer import tokenizer_differences
from llmopt.formats.gguf.weights import (
    Watch,
    arranged,
    as_bytes,
    keeps_values,
    nearest,
    unchanged,
)
from llmopt.formats.gguf.writer import Source, TensorEntry, write_gguf
from llmopt.formats.imatrix import read_imatrix
from llmopt.formats.quantization import read_contents
from llmopt.formats.safetensors import read_tensor
from llmopt.formats.shards import ShardWriter
from llmopt.formats.tensor_header import TensorHeader
from llmopt.grids import ggml
from llmopt.model.apply import own_config
from llmopt.model.contents import Contents
from llmopt.model.ledger import LedgerEntry, Measured
from llmopt.model.results import CorpusName
from llmopt.runtimes.device import pick_device
from llmopt.specs import KINDS
from llmopt.specs.ggml import GGML_TYPES
from llmopt.step import Outcome, Work
from llmopt.verbs.convert import gguf_types as gguf
from llmopt.verbs.convert.encoding import Encode
from llmopt.verbs.convert.settings import ConvertSettings, GgufTarget
from llmopt.verbs.shared import texts as text
from llmopt.verbs.shared.changes import linear_names
from llmopt.verbs.shared.config import bare_config
from llmopt.verbs.shared.gguf_about import description, of_imatrix
from llmopt.verbs.shared.records import certificate, energy, ratio, too_small
from llmopt.verbs.shared.side_files import copy_side_files, loading, write_config
from llmopt.verbs.shared.solving import Solver


def run(work: Work) -> Outcome:
    """Convert the parent model into model.gguf in `work.folder`."""
    parent = work.input()
    checkpoint, contents = Checkpoint.open(parent.path), read_contents(parent.path)
    conversion = _Conversion(work, checkpoint, contents)
    conversion.check_values()
    corpus = conversion.walk()
    conversion.write()
    others = copy_side_files(checkpoint, work.folder)
    config, ledger = bare_config(contents), list(conversion.ledger())
    write_config(own_config(contents), work.folder, config)
    facts = loading(checkpoint.naming, ())
    evidence: dict[str, object] = others | {"loading": facts, "certificate": certificate(ledger)}
    if conversion.allocation:
        evidence["allocation"] = conversion.allocation
    if differences := conversion.tokenizer_differences():
        evidence["tokenizer"] = differences
    return Outcome(
        format="gguf",
        ledger=ledger,
        config_changes=config,
        corpus=corpus,
        evidence=evidence,
        run={"device": str(conversion.device)},
    )


class _Conversion:
    def __init__(self, work: Work, checkpoint: Checkpoint, contents: Contents) -> None:
        self._work, self._checkpoint, self._contents = work, checkpoint, contents
        self.device = pick_device(work.options.device)
        settings = work.asked(ConvertSettings).target
        assert isinstance(settings, GgufTarget)
        guided = bool(work.step.files or work.step.calibration)
        self._settings = settings
        self._wanted = gguf.wanted(contents, settings, tied=checkpoint.tied, guided=guided)
        self.allocation: dict[str, object] | None = None
        if settings.has_budget:
            chosen, self.allocation = document.read(work.input("allocation").path)
            self._wanted = gguf.budgeted(self._wanted, chosen)
        #: whether the file's embedding is also its head, and has to be encoded as such
        self._shared = checkpoint.tied and not self._embedding_is_ready()
        self._writer = ShardWriter(work.state / "parts")
        self._about = description(settings.about, work.input(), contents)
        self._records: dict[str, Record] = {}
        #: of each tensor that is streamed, the sums of squares of its errors and its weights
        self._lost: dict[str, tuple[float, float]] = {}

    def check_values(self) -> None:
        """RequestError for values that would be lost unseen, before any work is done."""
        for each in gguf.conversions(self._contents, self._wanted):
            name, written = each.change.name, each.change.written
            module, _, kind = name.rpartition(".")
            filler = not written and kind == "bias" and module in self._checkpoint.layers
            if filler and bool(self._checkpoint.read(name).any()):
                raise RequestError(f"llama.cpp has no place for {name}, which is not zero")
        for wanted in self._wanted if self._settings.exact else ():
            place = wanted.placement
            certain = not place.offset and all(
                tensor.layout or gguf.holds(wanted.type_id, tensor)
                for tensor in (self._contents.tensors[name] for name in place.sources)
            )
            if wanted.has_blocks or certain:
                continue
            if not keeps_values(self._checkpoint, place, wanted.type_id):
                held = f"{place.offset:g} + w in " if place.offset else ""
                held += wanted.type_id
                raise RequestError(
                    f"{place.sources[0]} is not exact in the file, which holds {held}",
                    hint="without --exact it is rounded, and the error is reported",
                )

    def tokenizer_differences(self) -> list[str]:
        """What llama.cpp cuts otherwise; the tokenizer of a GGUF file is carried over."""
        if self._contents.kind == "gguf":
            return []
        return tokenizer_differences(self._checkpoint.folder, self._checkpoint.config)

    def walk(self) -> CorpusName | None:
        """Encode what gets blocks, part by part; returns what the text is called."""
        settings, checkpoint = self._settings, self._checkpoint
        naming = checkpoint.naming
        types = {
            module: each.type_id
            for each in self._wanted
            for module in self._modules(each.placement)
            if each.has_blocks
        }
        if not types.keys() & linear_names(naming, head=True):
            return None
        tokens, corpus = text.any_calibration(self._work, checkpoint.folder)
        importance = self._importance(types)
        encode = Encode(
            checkpoint, Solver(settings.solving), types, importance,
            sequential=settings.feeds_back,
        )  # fmt: skip
        if settings.exact:
            encode.refuse_what_is_not_exact()
        self._work.progress("blocks", 0, naming.block_count)
        self._records = walk(
            checkpoint, tokens, [encode], Sink(self._writer, codec_of("gguf")),
            self._work.state / "walk",
            head=naming.head in types,
            batch_size=settings.batch_size,
            device=self.device,
            activations_in_file=self._work.step.arrangement.activations_in_file,
            on_block=lambda done, total: self._work.progress("blocks", done, total),
        )  # fmt: skip
        return corpus

    def _embedding_is_ready(self) -> bool:
        """Whether the source has the embedding's very bytes, or the file has a head besides it."""
        source = f"{self._checkpoint.naming.embedding}.weight"
        return any(
            w.placement.name == gguf.HEAD
            or (
                w.placement.sources == (source,)
                and unchanged(self._checkpoint, w.placement, w.type_id) is not None
            )
            for w in self._wanted
        )

    def _modules(self, place: Placement) -> list[str]:
        """What a tensor of the file holds, as the walk calls it.

        An embedding that is the head, too, is walked as the head: that weighs its errors.
        """
        naming = self._checkpoint.naming
        names = [name.removesuffix(".weight") for name in gguf.names_of(naming, place)]
        return [naming.head] if names == [naming.embedding] and self._shared else names

    def _importance(self, types: Mapping[str, str]) -> dict[str, Tensor]:
        """Of each linear's inputs, float32 [cols], from an importance matrix; {} without one.

        RequestError where a linear's type is of no use without it.
        """
        file = self._work.step.files.get("imatrix")
        if file is None:
            return {}
        matrix = read_imatrix(Path(file.source))
        self._about |= of_imatrix(matrix, file.name)
        found: dict[str, Tensor] = {}
        for each in self._wanted:
            place = each.placement
            if not each.has_blocks or not place.sources:
                continue
            modules = self._modules(place)
            shared = modules == [self._checkpoint.naming.head]
            for name in (gguf.HEAD, place.name) if shared else (place.name,):
                weights = matrix.importance(name, len(modules), place.shape[-1])
                if weights is not None:
                    found |= dict(zip(modules, weights, strict=True))
                    break
        if not found:
            raise RequestError("the importance matrix knows none of the model's tensors")
        for module, type_id in types.items():
            there = self._contents.tensors.get(f"{module}.weight")
            if module in found or (there and gguf.is_stored_as(there, type_id)):
                continue
            if GGML_TYPES[type_id].importance == "required":
                raise RequestError(
                    f"the importance matrix lacks {module}, and {type_id} needs it",
                    hint="make one from more text: --to imatrix",
                )
        return found

    def write(self) -> None:
        """The file, from what the walk finished and from the checkpoint."""
        parts = {
            part: header
            for each in self._writer.parts()
            for part, header in self._writer.headers(each).items()
        }
        entries = [
            TensorEntry(w.placement.name, w.type_id, w.placement.shape, self._source(w, parts))
            for w in self._wanted
        ]
        said = metadata(
            self._contents, self._checkpoint.folder, self._about,
            gguf.file_type(self._settings, self._wanted),
        )  # fmt: skip
        path = self._work.folder / KINDS["gguf"].files[".gguf"]
        write_gguf(path, said, entries, self._settings.split_size)

    def _source(self, wanted: gguf.Wanted, parts: Mapping[str, TensorHeader]) -> Source:
        """Where the bytes of a tensor of the file come from."""
        place = wanted.placement
        found = [parts.get(f"{module}.ggml") for module in self._modules(place)]
        if place.sources and all(found):
            headers = [header for header in found if header]
            if place.order is None:
                return headers
            return lambda: (as_bytes(arranged(read_tensor(each), place)) for each in headers)
        # copies lose nothing; what is encoded notes what it loses while it is written
        self._lost |= dict.fromkeys(gguf.names_of(self._checkpoint.naming, place), (0.0, 0.0))
        search, watch = self._settings.search, self._errors(wanted)
        return nearest(self._checkpoint, place, wanted.type_id, search, watch)

    def _errors(self, wanted: gguf.Wanted) -> Watch | None:
        """Notes what streaming a tensor of the file loses; None where it loses nothing."""
        place, type_id = wanted.placement, wanted.type_id
        dtypes = {self._checkpoint.stored_dtype(source) for source in place.sources}
        if type_id == "F32" and not place.offset and torch.float64 not in dtypes:
            return None
        names = dict(zip(place.sources, gguf.names_of(self._checkpoint.naming, place), strict=True))

        def watch(source: str, rows: Tensor, data: Tensor) -> None:
            values = ggml.decode(type_id, data)
            if place.offset or rows.dtype == torch.float64:  # float32 would round this, too
                values, rows = values.double() - place.offset, rows.double()
            change = (values - rows).view(-1)
            lost, whole = self._lost[names[source]]
            self._lost[names[source]] = lost + energy(change), whole + energy(rows.reshape(-1))

        return watch

    def _streamed(self, name: str) -> Record:
        """What the ledger says of a tensor that the walk did not encode."""
        if name not in self._lost:
            raise LlmoptError(f"{name} was to be written and was not reached")
        lost, whole = self._lost[name]
        if lost == whole != 0:
            with about(name):
                raise too_small()
        return {"exact": lost == 0, "error": ratio(lost, whole)}

    def ledger(self) -> Iterator[LedgerEntry]:
        """Every tensor of the input, and what became of it."""
        naming = self._checkpoint.naming
        for change in (each.change for each in gguf.conversions(self._contents, self._wanted)):
            if not change.written:
                yield LedgerEntry.of_change(change)
                continue
            shared = self._shared and change.module == naming.embedding
            record = self._records.get(naming.head if shared else change.module)
            measured = Measured.of(record or self._streamed(change.name))
            yield LedgerEntry.of_change(change, measured)
