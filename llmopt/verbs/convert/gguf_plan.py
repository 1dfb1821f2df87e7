"""What a recipe asks of a conversion to GGUF, checked against a model's headers. No torch."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from llmopt import artifact
from llmopt.allocate.options import CANDIDATES_ALONE
from llmopt.errors import Mistakes, RequestError
from llmopt.formats.gguf.families import gguf_family
from llmopt.model.change import TensorFate
from llmopt.model.contents import Contents
from llmopt.model.layout import Layout, ggml_layout
from llmopt.recipe import Source
from llmopt.recipe.located import located
from llmopt.recipe.source import Key
from llmopt.specs import FORMATS
from llmopt.specs.ggml import GGML_TYPES
from llmopt.specs.presets import find_preset
from llmopt.verbs.convert import gguf_types as gguf
from llmopt.verbs.convert.layouts import Conversion
from llmopt.verbs.convert.settings import ConvertSettings

_FEEDBACK = {"damping": 0.01, "refine": 2}


class GgufRequest:
    """A convert step's settings, and where they stand."""

    def __init__(self, settings: ConvertSettings, source: Source, place: Key) -> None:
        self._settings, self._source, self._place = settings, source, place

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
        feedback, guided = settings.method == "gptq", settings.imatrix is not None
        preset = self._source.says((*self._place, "to"), "gguf:Q4_K_M")
        gptq = self._source.says((*self._place, "method"), "gptq")
        own = ("only method gptq has this setting", gptq)
        typed = settings.preset is not None or settings.has_budget
        settled = ("a GGUF file's preset settles this", "leave it out" if typed else preset)
        idle = ("without a preset the tensors are kept, and none is rounded", preset)
        for refused, name, (message, hint) in (
            *((name in given, name, settled) for name in ("grid", "group_size", "symmetric")),
            ("dtype" in given and typed, "dtype", settled),
            *((name in given and not feedback, name, own) for name in _FEEDBACK),
            (feedback and guided, "imatrix",
             ("gptq reads calibration text, of which an importance matrix says too little", None)),
            (feedback and settings.search == "reference", "search",
             ("gptq does not write what llama.cpp's encoder writes", None)),
            (settings.target_bpw and settings.target_size, "target_size",
             ("a step has one budget: target_bpw or target_size", None)),
            (settings.has_budget and guided, "imatrix",
             ("a budget takes calibration text to measure on", None)),
            (settings.candidates and not settings.has_budget, "candidates",
             (CANDIDATES_ALONE,
              self._source.says((*self._place, "target_bpw"), 4.5))),
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
        if self._settings.method == "gptq":
            return "method gptq", (*self._place, "method")
        return None, self._place

    def wanted(self, contents: Contents, *, guided: bool) -> list[gguf.Wanted]:
        """The tensors of the file; see `conversion.gguf.wanted`."""
        head = f"{contents.naming.head}.weight"
        tied = head not in contents.tensors
        name = "overrides" if self._settings.overrides else "preset"
        key = (*self._place, name if name in self._settings.model_fields_set else "to")
        found: list[gguf.Wanted] = located(
            self._source, key,
            lambda: gguf.wanted(contents, self._settings, tied=tied, guided=guided),
        )  # fmt: skip
        return found

    def conversions(self, contents: Contents, found: Sequence[gguf.Wanted]) -> list[Conversion]:
        """What becomes of each tensor; RecipeError where it has to be exact and is not."""
        result = list(gguf.conversions(contents, found))
        lost = next((each for each in result if each.loss), None)
        if lost and self._settings.exact:
            rounding = self._source.says((*self._place, "exact"), value=False)
            raise self._error(
                f"{lost.fate.name} cannot be converted exactly: {lost.loss}",
                "exact",
                f"{rounding} it is rounded, and reported",
            )
        return result

    def effective(self) -> dict[str, Any]:
        """The settings with nothing left to decide."""
        left_out = {"from_", "gate", "grid", "group_size", "symmetric"}
        effective = self._settings.model_dump(by_alias=True, exclude=left_out)
        effective |= {
            "method": self._settings.method or "rtn",
            "search": self._settings.search or "best",
            "imatrix": located(self._source, (*self._place, "imatrix"), self._imatrix),
            "format": "gguf",
        }
        if effective["method"] == "gptq":
            return effective | {
                name: usual if effective[name] is None else effective[name]
                for name, usual in _FEEDBACK.items()
            }
        return {name: value for name, value in effective.items() if name not in _FEEDBACK}

    def places(self) -> dict[str, dict[str, Any]]:
        """Where the importance matrix lies."""
        path = self._settings.imatrix
        return {} if path is None else {"imatrix": {"source": path}}

    def _imatrix(self) -> dict[str, str] | None:
        if self._settings.imatrix is None:
            return None
        path = Path(self._settings.imatrix)
        if not path.is_file():
            raise self._error(f"there is no file {path}", "imatrix")
        return {"name": path.name, "digest": artifact.file_digest(path)}

    def _error(self, message: str, name: str, hint: str | None = None) -> RequestError:
        return self._source.error(message, (*self._place, name), hint)


#: what a budget chooses among: the types that lose least at their size
_K_QUANTS = ("Q2_K", "Q3_K", "IQ4_XS", "Q4_K", "Q5_K", "Q6_K", "Q8_0")
_LEGACY = ("Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0")


def with_types(
    fates: Sequence[TensorFate], found: Sequence[gguf.Wanted], settings: ConvertSettings
) -> Iterator[TensorFate]:
    """The fates with the types that a budget may give each linear in a block.

    `bytes` of those is their share of the target, until the allocation is known.
    """
    inside = {
        source: each.settled
        for each in found
        if each.has_blocks and each.placement.name.startswith("blk.")
        for source in each.placement.sources
    }
    for fate in fates:
        if fate.quantize is None or fate.name not in inside:
            yield fate
        elif inside[fate.name]:
            yield replace(fate, options=(fate.quantize,))
        else:
            options = _options(fate, settings)
            sizes = [
                option.bytes((fate.shape[0], fate.shape[1]), FORMATS["gguf"]) for option in options
            ]
            wanted = math.prod(fate.shape) * (settings.target_bpw or 4.5) / 8
            size = round(min(max(wanted, min(sizes)), max(sizes)))
            yield replace(fate, options=options, bytes=size, why=f"{fate.why}, by budget")


def _options(fate: TensorFate, settings: ConvertSettings) -> tuple[Layout, ...]:
    cols = fate.shape[1]
    usual = _K_QUANTS if cols % 256 == 0 else _LEGACY
    types = [t for t in settings.candidates or usual if cols % GGML_TYPES[t].block == 0]
    if not types:
        raise RequestError(f"no candidate's blocks fill the {cols} inputs of {fate.name}")
    return tuple(ggml_layout(type_id) for type_id in types)
