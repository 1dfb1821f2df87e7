"""Size of a model on disk, from its headers."""

from __future__ import annotations

from collections.abc import Iterator

from llmopt.evaluate.probe import Reading, Subject
from llmopt.formats.headers import read_headers
from llmopt.formats.quantization import read_contents
from llmopt.specs.metrics import Measurement, Metrics


def measure(subject: Subject) -> Iterator[Reading]:
    """Bytes of the weight files, over the base's, and for each weight of the model as a whole."""

    def metrics() -> Metrics:
        folder = subject.model.path
        size = read_headers(folder).weight_bytes
        bits = size * 8 / read_contents(folder).weight_count
        found: dict[str, Measurement] = {"size.bytes": size, "bits_per_weight": bits}
        if subject.base is not None:
            found["size.ratio"] = size / read_headers(subject.base.path).weight_bytes
        return found

    yield Reading(1, 1, metrics)
