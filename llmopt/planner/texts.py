"""Calibration and evaluation text in plans."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from llmopt import artifact
from llmopt.corpora import source as corpora
from llmopt.recipe import Recipe, Source
from llmopt.recipe.located import located
from llmopt.recipe.models import CalibrationData, EvaluationData
from llmopt.recipe.source import Key
from llmopt.specs.families import family_of
from llmopt.verbs.bench.settings import BenchSettings

_SHORTEST = 4
"""Tokens of context that a prompt and what is timed after it need."""


class Texts:
    """The recipe's texts as steps name them: by name and digest, cut to the model's context."""

    def __init__(self, recipe: Recipe, source: Source, config: Mapping[str, Any]) -> None:
        self._recipe, self._source, self._config = recipe, source, config
        self._digests: dict[tuple[str, str, str], str] = {}

    def calibration(self, needed_by: str | None, place: Key) -> dict[str, Any] | None:
        """What a step is calibrated on; None where none is given, and nothing needs it.

        `needed_by` is what the setting at `place` asks for.
        """
        data = self._recipe.data.calibration
        source = data.source or ("demo" if self._recipe.model == "demo" and needed_by else "")
        if not source:
            if needed_by:
                raise self._source.error(
                    f"{needed_by} needs calibration text",
                    place,
                    "give data.calibration.source (--calibration FILE, or demo for Python text)",
                )
            return None
        key: Key = ("data", "calibration", "source")
        digest = located(self._source, key, lambda: self._digest(source, data.field, "calibration"))
        named = {"source": text_name(source), "digest": digest}
        return data.model_dump() | named | self._length("calibration", data)

    def evaluation(self, windows: int | None = None) -> dict[str, Any]:
        """What a step is measured on: `windows` of it, where that is less than the recipe's."""
        data = self._recipe.data.evaluation
        key: Key = ("data", "evaluation", "source")
        digest = located(
            self._source, key, lambda: self._digest(data.source, data.field, "evaluation")
        )
        if data.source == self._recipe.data.calibration.source and data.source != "demo":
            raise self._source.error(
                "calibration and evaluation are the same text: that measures memory, not quality",
                key,
                "hold some text out, or evaluate on demo",
            )
        count = data.windows if windows is None else min(windows, data.windows)
        named = {"source": text_name(data.source), "windows": count, "digest": digest}
        return data.model_dump() | named | self._length("evaluation", data)

    def places(self) -> dict[str, dict[str, Any]]:
        """Where the recipe's texts lie, and as much of them as the model's context allows."""
        found = {}
        for name, data in (
            ("calibration", self._recipe.data.calibration),
            ("evaluation", self._recipe.data.evaluation),
        ):
            named = {"source": data.source or "demo"}
            found[name] = data.model_dump() | named | self._length(name, data)
        return found

    def _length(self, name: str, data: CalibrationData | EvaluationData) -> dict[str, int]:
        """Tokens a sequence; a default that the context has no room for is cut, and it is said.

        RecipeError for one that was asked for.
        """
        context = self._context
        if context is None or data.length <= context:
            return {"length": data.length}
        if "length" in data.model_fields_set:
            raise self._source.error(
                f"{data.length:,} tokens a sequence do not fit the model's context of {context:,}",
                ("data", name, "length"),
                f"at most {context:,}",
            )
        return {"length": context, "cut_from": data.length}

    def new_tokens(self, settings: BenchSettings, key: Key) -> dict[str, int]:
        """Tokens decoded for speed after a prompt, within the context; see `_length`."""
        context = self._context
        if context is None or settings.new_tokens < context:
            return {"new_tokens": settings.new_tokens}
        if "new_tokens" in settings.model_fields_set or context < _SHORTEST:
            raise self._source.error(
                f"{settings.new_tokens:,} tokens after a prompt do not fit the model's context "
                f"of {context:,}",
                key,
                f"at most {context - 1:,}" if context >= _SHORTEST else "measure without speed",
            )
        return {"new_tokens": context // 2, "new_tokens_cut_from": settings.new_tokens}

    def _digest(self, source: str, field: str, split: corpora.Split) -> str:
        asked = (source, field, split)
        if asked not in self._digests:  # many steps share their text
            self._digests[asked] = corpus_digest(source, field, split)
        return self._digests[asked]

    @property
    def _context(self) -> int | None:
        """The longest sequence the model was made for, in tokens, where its config says so."""
        text = family_of(self._config).language_config(self._config)
        for name in ("max_position_embeddings", "n_positions", "n_ctx"):
            value = text.get(name)
            if isinstance(value, int) and value > 0:
                return value
        return None


def text_name(source: str) -> str:
    """What manifests call a text: its file's name, not where it lies."""
    return source if source == "demo" else Path(source).resolve().name


def corpus_digest(source: str, field: str, split: corpora.Split) -> str:
    """What identifies the text behind `source`, without tokenizing it."""
    corpora.check(source, split=split, field=field)
    if source == "demo":
        return corpora.load(source, split=split).sha256
    path = Path(source)
    if path.is_dir():
        return artifact.digest_of(artifact.describe_files(path))
    return artifact.file_digest(path)
