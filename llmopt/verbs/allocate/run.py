"""The allocate step: choose the settings of each linear so that all together meet a budget."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from pydantic import TypeAdapter
from torch import Tensor

from llmopt.allocate import document
from llmopt.allocate.search import search
from llmopt.allocate.sensitivity import Group, Sensitivity
from llmopt.artifact import write_json
from llmopt.blockwalk.gradient import walk_backward
from llmopt.errors import LlmoptError
from llmopt.evaluate.held_out import HeldOut
from llmopt.formats.checkpoint import Checkpoint
from llmopt.formats.codec import decode
from llmopt.formats.files import read_json
from llmopt.formats.gguf.export import metadata, placements
from llmopt.formats.gguf.writer import TensorEntry, header_bytes
from llmopt.formats.quantization import read_contents
from llmopt.grids.base import QuantizedTensor
from llmopt.linalg import InputStatistics
from llmopt.methods.quantize.base import check_scales
from llmopt.model.layout import Layout
from llmopt.model.results import CorpusName
from llmopt.runtimes.device import pick_device
from llmopt.specs import FORMATS
from llmopt.step import Outcome, Work
from llmopt.verbs.allocate.settings import AllocateSettings
from llmopt.verbs.shared import texts as text
from llmopt.verbs.shared.budget import byte_budget
from llmopt.verbs.shared.changes import as_held
from llmopt.verbs.shared.gguf_about import description
from llmopt.verbs.shared.settings import Rounding
from llmopt.verbs.shared.solving import Solver

#: calibration windows that sensitivities are read from, and that choices are measured on
_MOST_SEEN, _MOST_HELD_OUT = 64, 16
#: exchanges tried on real divergence
_TRIES = 24
#: what measured.json holds: the divergence of each choice
_KNOWN = TypeAdapter(dict[str, float])


def run(work: Work) -> Outcome:
    """Write allocation.json into `work.folder`."""
    checkpoint, sensitivity, held_out, corpus = _sensitivity(work)
    groups = sensitivity.groups()
    budget = _budget(work) - _header(work, checkpoint)
    windows = HeldOut(
        checkpoint, held_out,
        batch_size=_asking(work).batch_size, device=pick_device(work.options.device),
    )  # fmt: skip
    measurements = _Measurements(groups, sensitivity, windows, work.state / "measured.json")
    total = len({group.kind for group in groups}) + 2 + _TRIES
    measurements.on_measured = lambda count: work.progress("measurements", count, total)
    found = search(groups, budget, measurements, tries=_TRIES)
    written = document.document(groups, found, budget)
    write_json(work.folder / document.FILE, written)
    keys = ("bits_per_weight", "predicted_kl", "modelled_kl")
    return Outcome(
        format="allocation",
        corpus=corpus,
        evidence={key: written[key] for key in keys},
        run={"measurements": len(measurements.known)},
    )


def table(work: Work) -> list[dict[str, object]]:
    """What each setting of each group of linears would cost; nothing is chosen or written."""
    groups = _sensitivity(work)[1].groups()
    return document.table(groups, [None] * len(groups))


def _sensitivity(work: Work) -> tuple[Checkpoint, Sensitivity, Tensor, CorpusName]:
    """Walk backward over the parent model, on all calibration windows but those held out."""
    parent = work.input()
    checkpoint = Checkpoint.open(parent.path)
    windows, corpus = text.checked_calibration(work, checkpoint.folder)
    seen, held_out = split(windows)
    solver = Solver(_asking(work).solving)

    def solve(weight: Tensor, statistics: InputStatistics, chosen: Layout) -> Tensor:
        solved = solver.solve(weight, statistics, chosen)
        if isinstance(solved, QuantizedTensor):
            check_scales(weight, solved)
        return decode(solved)

    spec = FORMATS[_asking(work).solving.format]
    folder = work.state / "sensitivity"
    sensitivity = Sensitivity(checkpoint.naming, work.step.changes, spec, solve, folder)
    walk_backward(
        checkpoint, seen, sensitivity, work.state / "walk",
        seed=work.step.seed,
        batch_size=_asking(work).batch_size,
        device=pick_device(work.options.device),
        activations_in_file=work.step.arrangement.activations_in_file,
        on_block=lambda done, total: work.progress("blocks", done, total),
    )  # fmt: skip
    return checkpoint, sensitivity, held_out, corpus


def _budget(work: Work) -> int:
    asking, changes = _asking(work), work.step.changes
    spec = FORMATS[asking.solving.format]
    if spec.kind != "gguf":  # what came quantized and stays so takes what it takes
        changes = tuple(as_held(changes, read_contents(work.input().path), spec.id))
    return byte_budget(changes, asking.target_bpw, asking.target_size)


def _asking(work: Work) -> Rounding:
    return work.asked(AllocateSettings).asking


def _header(work: Work, checkpoint: Checkpoint) -> int:
    """Bytes of a file's header where a target counts them and headers alone do not tell."""
    asking = _asking(work)
    if FORMATS[asking.solving.format].kind != "gguf" or asking.target_size is None:
        return 0
    contents = read_contents(checkpoint.folder)
    places = placements(contents, tied=checkpoint.tied)
    entries = [TensorEntry(place.name, "F32", place.shape, []) for place in places]
    said = metadata(
        contents, checkpoint.folder, description(asking.about, work.input(), contents), 0
    )
    return header_bytes(said, entries, work.state / "header")


def split(windows: Tensor) -> tuple[Tensor, Tensor]:
    """Windows to read sensitivities from, and at most a quarter of all to measure choices on."""
    held_out = max(1, min(_MOST_HELD_OUT, len(windows) // 4))
    return windows[:-held_out][:_MOST_SEEN], windows[-held_out:]


class _Measurements:
    """Divergences of choices, kept in a file so that a killed search does not measure twice."""

    def __init__(
        self, groups: Sequence[Group], sensitivity: Sensitivity, windows: HeldOut, path: Path
    ) -> None:
        self._groups, self._sensitivity = groups, sensitivity
        self._windows, self._path = windows, path
        self.known = _KNOWN.validate_python(read_json(path)) if path.is_file() else {}
        self.on_measured: Callable[[int], None] = lambda _: None

    def __call__(self, settings: Sequence[Layout | None]) -> float:
        """The mean divergence on all windows; None leaves a group as it is."""
        key = "; ".join("kept" if setting is None else setting.label for setting in settings)
        if key not in self.known:
            chosen = {
                name: setting
                for group, setting in zip(self._groups, settings, strict=True)
                for name in group.names
                if setting is not None
            }

            def change(name: str) -> Tensor | None:
                return self._sensitivity.value(name, chosen[name]) if name in chosen else None

            found = self._windows.measure(change)
            self.known[key] = sum(found) / len(found)
            write_json(self._path, self.known)
        self.on_measured(len(self.known))
        if not self.known[key] >= 0:
            raise LlmoptError("the quantized model's output is not finite on calibration text")
        return self.known[key]
