"""llmopt with one verb more."""

from __future__ import annotations

from llmopt.cli.main import run
from llmopt.specs import VERBS
from tests.thin.table import VERB

VERBS["thin"] = VERB
run()
