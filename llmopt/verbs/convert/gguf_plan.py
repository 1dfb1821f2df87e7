"""What a recipe asks of a conversion to GGUF, checked against a model's headers. No torch."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

from llmopt import artifact
from llmopt.errors import Mistakes, RequestError
from llmopt.formats.gguf.families import gguf_family
from llmopt.model.apply import apply
from llmopt.model.change import Change
from llmopt.model.contents import Contents
from llmopt.model.layout import Layout, ggml_layout
from llmopt.recipe.source import Key
from llmopt.specs.formats import IMATRIX
from llmopt.specs.ggml import GGML_TYPES
from llmopt.specs.presets import find_preset
from llmopt.step import NamedFile, PlanContext, Planned, PlannedStep
from llmopt.verbs.convert import gguf_types as gguf
from llmopt.verbs.convert.layouts import refuse_loss
from llmopt.verbs.convert.settings import ConvertSettings, GgufTarget, ImatrixTarget, PlannedGguf
from llmopt.verbs.shared import budget
from llmopt.verbs.shared.changes import has_head
from llmopt.verbs.shared.config import bare_config
from llmopt.verbs.shared.effort import imatrix_effort, quantize_effort
from llmopt.verbs.shared.fitting import walked
from llmopt.verbs.shared.footprints import Hessians, imatrix_footprint, quantize_footprint


def plan(
    settings: ConvertSettings, target: GgufTarget, context: PlanContext
) -> tuple[Planned, bool]:
    """A conversion to GGUF, its allocation before it, and whether it rounds weights to blocks."""
    model = context.model()
    contents = context.contents(model.name)
    request = GgufRequest(target, context)
    request.check(contents)
    calibration = None
    if target.imatrix is None and request.rounds:
        calibration = context.calibration(*request.calibrated_for())
    found = request.wanted(contents, guided=bool(calibration or target.imatrix))
    lost = list(gguf.conversions(contents, found))
    refuse_loss(lost, context, exact=target.exact)
    changes = tuple(each.change for each in lost)
    hessians: Hessians = "in turn" if target.feeds_back else "none"
    needs = partial(
        quantize_footprint, contents, changes, calibration, hessians,
        in_turn=target.feeds_back, one_file=True,
    )  # fmt: skip
    fitted = walked(needs, calibration, target.batch_size, context)
    step = PlannedStep(
        id=context.id,
        verb="convert",
        settings=settings.model_copy(
            update={"target": _effective(target, context, fitted.way.batch_size)}
        ),
        inputs=(model,),
        key=context.key,
        writes="gguf",
        seed=context.seed,
        calibration=calibration,
        held_out=context.held_out() if calibration else None,
        files=request.files(),
        changes=changes,
        config_changes=bare_config(contents),
        effort=quantize_effort(
            contents, changes, calibration, target.solving, in_turn=target.feeds_back
        ),
        footprint=fitted.footprint,
        arrangement=fitted.way.arrangement,
        summary="convert to gguf",
    )
    request.check_parts(step)
    steps = _with_budget(step, found, target, context) if target.has_budget else (step,)
    last = steps[-1]
    after = apply(contents, last.changes, last.config_changes, format_id="gguf", kind="gguf")
    return Planned(steps, after), any(each.loss and each.change.quantized for each in lost)


def _effective(target: GgufTarget, context: PlanContext, batch_size: int) -> PlannedGguf:
    name = context.model_name.rpartition("/")[2]
    decided = {"imatrix": None, "model_name": name, "batch_size": batch_size}
    return PlannedGguf.model_validate(target.model_dump(by_alias=True) | decided)


def _with_budget(
    step: PlannedStep, found: Sequence[gguf.Wanted], settings: GgufTarget,
    context: PlanContext,
) -> tuple[PlannedStep, ...]:  # fmt: skip
    """The step with options for each linear, after the allocation that chooses among them."""
    with context.source.at((*context.key, "candidates")):
        changes = tuple(with_types(step.changes, found, settings))
    assert isinstance(step.settings, ConvertSettings)
    return budget.after_allocation(step, step.settings.target, changes, context)


def importance(settings: ConvertSettings, context: PlanContext) -> Planned:
    """An importance matrix of the model's linears: no model, nothing is made from it."""
    model = context.model()
    contents = context.contents(model.name)
    assert isinstance(settings.target, ImatrixTarget)
    found = GgufRequest(GgufTarget(), context).wanted(contents, guided=True)
    calibration = context.calibration("an importance matrix", (*context.key, "to"))
    assert calibration is not None
    changes = tuple(each.change for each in gguf.conversions(contents, found))
    target = settings.target
    needs = partial(imatrix_footprint, contents, changes, calibration)
    fitted = walked(needs, calibration, target.batch_size, context)
    target = target.model_copy(update={"batch_size": fitted.way.batch_size})
    step = PlannedStep(
        id=context.id,
        verb="convert",
        settings=settings.model_copy(update={"target": target}),
        inputs=(model,),
        key=context.key,
        writes=IMATRIX,
        seed=context.seed,
        calibration=calibration,
        held_out=context.held_out(),
        effort=imatrix_effort(contents, calibration),
        footprint=fitted.footprint,
        arrangement=fitted.way.arrangement,
        summary=f"convert to {IMATRIX}",
    )
    return Planned((step,))


class GgufRequest:
    """What a step asks of a GGUF file, and where that stands."""

    def __init__(self, settings: GgufTarget, context: PlanContext) -> None:
        self._settings, self._context = settings, context
        self._source, self._place = context.source, context.key

    def check(self, contents: Contents) -> None:
        """RecipeError for settings that do not go together or that the model has, all of them."""
        mistakes = Mistakes()
        mistakes.add(self._error(message, name, hint) for name, message, hint in self._refused())
        own = gguf_family(contents.family.id).architecture
        mistakes.add(
            self._source.error(f"{key} is what the model makes it", (*self._place, "metadata", key))
            for key in self._settings.metadata
            if key.partition(".")[0] == own
        )
        mistakes.raise_any()

    def _refused(self) -> Iterator[tuple[str, str, str | None]]:
        settings, given = self._settings, self._settings.model_fields_set
        feedback, guided = settings.feeds_back, settings.imatrix is not None
        preset = self._source.says((*self._place, "to"), "gguf:Q4_K_M")
        typed = settings.preset is not None or settings.has_budget
        settled = ("a GGUF file's preset settles this", "leave it out")
        idle = ("without a preset the tensors are kept, and none is rounded", preset)
        for refused, name, (message, hint) in (
            ("dtype" in given and typed, "dtype", settled),
            (feedback and guided, "imatrix",
             ("gptq reads calibration text, of which an importance matrix says too little", None)),
            (feedback and settings.search == "reference", "search",
             ("gptq does not write what llama.cpp's encoder writes", None)),
            (settings.target_bpw and settings.target_size, "target_size",
             ("a step has one budget: target_bpw or target_size", None)),
            (settings.has_budget and guided, "imatrix",
             ("a budget takes calibration text to measure on", None)),
            (settings.candidates and not settings.has_budget, "candidates",
             (budget.CANDIDATES_ALONE, self._source.says((*self._place, "target_bpw"), 4.5))),
            (feedback and not self.rounds, "method", idle),
            (guided and not self.rounds, "imatrix", idle),
        ):  # fmt: skip
            if refused:
                yield name, message, hint

    @property
    def rounds(self) -> bool:
        """Whether weights may be rounded to blocks, so that importance says something."""
        preset = self._settings.preset
        plain = preset is None or find_preset(preset).is_plain
        return not plain or bool(self._settings.overrides) or self._settings.has_budget

    def calibrated_for(self) -> tuple[str | None, Key]:
        """What needs calibration text, and where that is asked for."""
        if self._settings.has_budget:
            name = "target_bpw" if self._settings.target_bpw else "target_size"
            return "a budget", (*self._place, name)
        if self._settings.feeds_back:
            return f"method {self._settings.method}", (*self._place, "method")
        return None, self._place

    def wanted(self, contents: Contents, *, guided: bool) -> list[gguf.Wanted]:
        """The tensors of the file; see `gguf_types.wanted`."""
        name = "overrides" if self._settings.overrides else "preset"
        key = (*self._place, name if name in self._settings.model_fields_set else "to")
        with self._source.at(key):
            return gguf.wanted(contents, self._settings, tied=not has_head(contents), guided=guided)

    def files(self) -> dict[str, NamedFile]:
        """The importance matrix, where one is given."""
        if self._settings.imatrix is None:
            return {}
        path = Path(self._settings.imatrix)
        with self._source.at((*self._place, "imatrix")):
            if not path.is_file():
                raise RequestError(f"there is no file {path}")
            digest = artifact.file_digest(path)
        return {"imatrix": NamedFile(path.name, digest, str(path))}

    def check_parts(self, step: PlannedStep) -> None:
        """RecipeError where what -o names as one file would be several."""
        size, file = self._settings.split_size, self._context.file_name
        most = self._settings.target_size or sum(change.bytes for change in step.changes)
        if size and file and most > size:
            message = f"several files of {size:,} bytes cannot be {file}"
            raise self._error(message, "split_size", "-o FOLDER, or a larger split size")

    def _error(self, message: str, name: str, hint: str | None) -> RequestError:
        return self._source.error(message, (*self._place, name), hint)


#: what a budget chooses among: the types that lose least at their size
_K_QUANTS = ("Q2_K", "Q3_K", "IQ4_XS", "Q4_K", "Q5_K", "Q6_K", "Q8_0")
_LEGACY = ("Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0")


def with_types(
    changes: Sequence[Change], found: Sequence[gguf.Wanted], settings: GgufTarget
) -> Iterator[Change]:
    """The changes with the types that a budget may give each linear in a block."""
    inside = {
        source: each.settled
        for each in found
        if each.has_blocks and each.placement.name.startswith("blk.")
        for source in each.placement.sources
    }
    for change in changes:
        if change.quantized is None or change.name not in inside:
            yield change
        elif inside[change.name]:
            yield replace(change, options=(change.quantized,))
        else:
            bits, options = settings.target_bpw or 4.5, _options(change, settings)
            yield budget.with_options(change, options, "gguf", bits)


def _options(change: Change, settings: GgufTarget) -> tuple[Layout, ...]:
    cols = change.shape[1]
    usual = _K_QUANTS if cols % 256 == 0 else _LEGACY
    types = [t for t in settings.candidates or usual if cols % GGML_TYPES[t].block == 0]
    if not types:
        raise RequestError(f"no candidate's blocks fill the {cols} inputs of {change.name}")
    return tuple(ggml_layout(type_id) for type_id in types)
