"""Calibration and evaluation text in plans."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import cache
from pathlib import Path

from llmopt import artifact
from llmopt.corpora import source as corpora
from llmopt.recipe import Recipe, Source
from llmopt.recipe.models import CalibrationData, EvaluationData
from llmopt.recipe.source import Key
from llmopt.specs.families import family_of
from llmopt.step import Text

_DEMO = "demo"


class Texts:
    """The recipe's texts as steps name them: by name and digest, cut to the model's context."""

    def __init__(self, recipe: Recipe, config: Mapping[str, object]) -> None:
        self._recipe = recipe
        self._digest = cache(_digest)  # many steps share their text
        self.context_length = _context_length(config)

    def calibration(self, needed_by: str | None, key: Key, source: Source) -> Text | None:
        """See PlanContext."""
        data = self._recipe.data.calibration
        place = data.source or (_DEMO if self._recipe.model == _DEMO and needed_by else "")
        if place:
            return self._text("calibration", data, place, data.sequences, source)
        if needed_by:
            raise source.error(
                f"{needed_by} needs calibration text",
                key,
                "give data.calibration.source (--calibration FILE, or demo for Python text)",
            )
        return None

    def evaluation(self, windows: int | None, source: Source) -> Text:
        """See PlanContext."""
        data = self._recipe.data.evaluation
        count = data.windows if windows is None else min(windows, data.windows)
        found = self._text("evaluation", data, data.source, count, source)
        if data.source == self._recipe.data.calibration.source and data.source != _DEMO:
            raise source.error(
                "calibration and evaluation are the same text: that measures memory, not quality",
                ("data", "evaluation", "source"),
                "hold some text out, or evaluate on demo",
            )
        return found

    def held_out(self, source: Source) -> Text:
        """See PlanContext."""
        data = self._recipe.data.evaluation
        return self._undigested("evaluation", data, data.source, data.windows, source)

    def _text(
        self, split: corpora.Split, data: CalibrationData | EvaluationData,
        place: str, count: int, source: Source,
    ) -> Text:  # fmt: skip
        with source.at(("data", split, "source")):
            digest = self._digest(place, data.field, split)
        return replace(self._undigested(split, data, place, count, source), digest=digest)

    def _undigested(
        self, split: str, data: CalibrationData | EvaluationData, place: str, count: int,
        source: Source,
    ) -> Text:  # fmt: skip
        name = place if place == _DEMO else Path(place).resolve().name
        length, cut_from = self._length(split, data, source)
        return Text(
            split=split, name=name, source=place, field=data.field, count=count,
            length=length, cut_from=cut_from,
        )  # fmt: skip

    def _length(
        self, split: str, data: CalibrationData | EvaluationData, source: Source
    ) -> tuple[int, int | None]:
        """Tokens a sequence; a default that the context has no room for is cut, and it is said.

        RecipeError for one that was asked for.
        """
        context = self.context_length
        if context is None or data.length <= context:
            return data.length, None
        if "length" in data.model_fields_set:
            raise source.error(
                f"{data.length:,} tokens a sequence do not fit the model's context of {context:,}",
                ("data", split, "length"),
                f"at most {context:,}",
            )
        return context, data.length


def _context_length(config: Mapping[str, object]) -> int | None:
    """The longest sequence a model was made for, in tokens, where its config says so."""
    text = family_of(config).language_config(config)
    for name in ("max_position_embeddings", "n_positions", "n_ctx"):
        value = text.get(name)
        if isinstance(value, int) and value > 0:
            return value
    return None


def _digest(source: str, field: str, split: corpora.Split) -> str:
    """What identifies the text behind `source`, without tokenizing it."""
    corpora.check(source, split=split, field=field)
    if source == _DEMO:
        return corpora.load(source, split=split).sha256
    path = Path(source)
    if path.is_dir():
        return artifact.digest_of(artifact.describe_files(path))
    return artifact.file_digest(path)
