"""What a step can do: one folder and one line here for each verb."""

from __future__ import annotations

from llmopt.specs.base import VerbSpec

VERBS: dict[str, VerbSpec] = {
    "quantize": VerbSpec(
        id="quantize",
        package="llmopt.verbs.quantize",
        version=7,
        yields="model",
        summary="Quantize weights, and check the result.",
    ),
    "convert": VerbSpec(
        id="convert",
        package="llmopt.verbs.convert",
        version=7,
        yields="model",
        summary="Write the same weights in another layout.",
    ),
    "bench": VerbSpec(
        id="bench",
        package="llmopt.verbs.bench",
        version=4,
        yields="results",
        summary="Measure quality, size, speed and memory.",
    ),
    "allocate": VerbSpec(
        id="allocate",
        package="llmopt.verbs.allocate",
        version=3,
        yields="advice",
        command=False,
        summary="Choose settings for each linear within a budget.",
    ),
}
