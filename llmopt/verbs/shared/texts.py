"""The text that a step calibrates or measures on, as windows of tokens."""

from __future__ import annotations

from pathlib import Path

from torch import Tensor

from llmopt.corpora.source import Split, load
from llmopt.corpora.tokenize import Tokens, tokenize
from llmopt.corpora.windows import calibration_windows, evaluation_windows, overlap
from llmopt.errors import RequestError, about
from llmopt.formats.quantization import read_contents
from llmopt.model.results import CorpusName
from llmopt.runtimes.tokens import check_tokens
from llmopt.step import Text, Work

#: a share of common text above which an evaluation measures memory
_LARGEST_OVERLAP = 0.02


def calibration(text: Text, folder: Path, seed: int) -> tuple[Tensor, CorpusName]:
    """Windows int64 [sequences, length] in the tokens of the model in `folder`, and their name."""
    tokens, corpus = _read(text, "calibration", folder)
    windows = calibration_windows(tokens, text.count, text.length, seed)
    _check_ids(windows, "calibration", folder)
    return windows, corpus


def checked_calibration(work: Work, folder: Path) -> tuple[Tensor, CorpusName]:
    """A step's calibration windows, and their name; RequestError if the evaluation has them too.

    `folder` is the model that they are tokenized for.
    """
    seen, held_out = work.step.calibration, work.step.held_out
    assert seen is not None
    windows, corpus = calibration(seen, folder, work.step.seed)
    if held_out and seen.source != held_out.source:  # one source has splits that share nothing
        refuse_overlap(windows, evaluation(held_out, folder)[0])
    return windows, corpus


def any_calibration(work: Work, folder: Path) -> tuple[Tensor | None, CorpusName | None]:
    """The same; None of a step that reads no text."""
    return checked_calibration(work, folder) if work.step.calibration else (None, None)


def evaluation(text: Text, folder: Path) -> tuple[Tensor, CorpusName]:
    """Windows int64 [windows, length], and their name; see `calibration`."""
    tokens, corpus = _read(text, "evaluation", folder)
    windows = evaluation_windows(tokens, text.count, text.length)
    _check_ids(windows, "evaluation", folder)
    return windows, corpus


def refuse_overlap(seen: Tensor, held_out: Tensor) -> None:
    """RequestError where evaluation windows hold text that calibration windows have."""
    share = overlap(seen, held_out)
    if share > _LARGEST_OVERLAP:
        raise RequestError(
            f"{share:.0%} of the evaluation text is in the calibration text too",
            hint="a model is measured on text that calibration never saw: hold some out",
        )


def _check_ids(windows: Tensor, split: Split, folder: Path) -> None:
    """RequestError where text has tokens that the model in `folder` has no rows for."""
    contents = read_contents(folder)
    rows = contents.tensors[f"{contents.naming.embedding}.weight"].shape[0]
    with about(f"{split} text"):
        check_tokens(windows, None, rows)


def _read(text: Text, split: Split, folder: Path) -> tuple[Tokens, CorpusName]:
    corpus = load(text.source, split=split, field=text.field, tokenizer_folder=folder)
    return tokenize(corpus, folder), CorpusName(
        name=corpus.name,
        sha256=corpus.sha256,
        windows=text.count,
        length=text.length,
        cut_from=text.cut_from,
    )
