"""The text that a step calibrates or measures on, as windows of tokens."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import Tensor

from llmopt.corpora.source import Split, load
from llmopt.corpora.tokenize import Tokens, tokenize
from llmopt.corpora.windows import calibration_windows, evaluation_windows, overlap
from llmopt.errors import RequestError, about
from llmopt.formats.quantization import read_contents
from llmopt.runtimes.tokens import check_tokens
from llmopt.step import Work

#: a share of common text above which an evaluation measures memory
_LARGEST_OVERLAP = 0.02


def calibration(
    data: dict[str, Any], source: str, folder: Path, seed: int
) -> tuple[Tensor, dict[str, Any]]:
    """Windows int64 [sequences, length] in the tokens of the model in `folder`, and their name.

    `data` is a step's calibration settings, `source` where the text lies on this machine.
    """
    tokens, described = _read(data, source, "calibration", folder)
    windows = calibration_windows(tokens, data["sequences"], data["length"], seed)
    _check_ids(windows, "calibration", folder)
    return windows, described | _shape(data, data["sequences"])


def checked_calibration(work: Work, folder: Path) -> tuple[Tensor, dict[str, Any]]:
    """A step's calibration windows, and their name; RequestError if the evaluation has them too.

    `folder` is the model that they are tokenized for.
    """
    source, held_out = work.texts["calibration"]["source"], work.texts["evaluation"]
    settings = work.settings
    windows, corpus = calibration(settings["calibration"], source, folder, settings["seed"])
    if source != held_out["source"]:  # one source has splits that share nothing
        refuse_overlap(windows, evaluation(held_out, held_out["source"], folder)[0])
    return windows, corpus


def evaluation(data: dict[str, Any], source: str, folder: Path) -> tuple[Tensor, dict[str, Any]]:
    """Windows int64 [windows, length], and their name; see `calibration`."""
    tokens, described = _read(data, source, "evaluation", folder)
    windows = evaluation_windows(tokens, data["windows"], data["length"])
    _check_ids(windows, "evaluation", folder)
    return windows, described | _shape(data, data["windows"])


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


def _read(
    data: dict[str, Any], source: str, split: Split, folder: Path
) -> tuple[Tokens, dict[str, Any]]:
    corpus = load(source, split=split, field=data["field"], tokenizer_folder=folder)
    return tokenize(corpus, folder), {"name": corpus.name, "sha256": corpus.sha256}


def _shape(data: dict[str, Any], windows: int) -> dict[str, int]:
    """How much text is used; `cut_from` is the length that the model's context had no room for."""
    cut = {"cut_from": data["cut_from"]} if "cut_from" in data else {}
    return {"windows": windows, "length": data["length"], **cut}
