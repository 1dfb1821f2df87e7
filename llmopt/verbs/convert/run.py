"""The convert step: the same values in another layout."""

from __future__ import annotations

from llmopt.specs import load
from llmopt.specs.formats import IMATRIX
from llmopt.step import Outcome, Runs, Work
from llmopt.verbs.convert.settings import ConvertSettings

#: targets whose work is their own; all others are checkpoints
_TARGETS = {"gguf": "llmopt.verbs.convert.gguf", IMATRIX: "llmopt.verbs.convert.imatrix"}


def run(work: Work) -> Outcome:
    """Convert the model into `work.folder`."""
    target: Runs = load(
        _TARGETS.get(work.asked(ConvertSettings).to, "llmopt.verbs.convert.checkpoint")
    )
    return target.run(work)
