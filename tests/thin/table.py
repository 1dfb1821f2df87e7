"""The line in the table of verbs."""

from __future__ import annotations

from llmopt.specs import VerbSpec

VERB = VerbSpec(  # in specs/verbs.py
    id="thin",
    package="tests.thin",
    version=1,
    yields="model",
    summary="Drop a layer, and keep the MLP channels that weigh most in a teacher.",
)
