"""Classes of quality: how far a model is from the original, by limits that are written down.

The limits are those of a user who cannot try every task. They follow llama.cpp's published figures
for Llama 3 8B against float16 (mean KL in nats, same top token), which many people know by feel:
Q8_0 0.0014 and 97.7%, Q6_K 0.0055 and 96.0%; Q4_K_M 0.028 and 91.9%; Q3_K_M 0.084; Q2_K 0.33 and
71.1%. Small models lose more at the same bits, and land in a lower class for it.
"""

from __future__ import annotations

from dataclasses import dataclass

from llmopt.model.results import BenchEntry
from llmopt.specs.metrics import ends_of


@dataclass(frozen=True)
class QualityClass:
    """A class, the largest mean KL in nats and the smallest share of same top tokens it allows."""

    name: str
    largest_kl: float
    least_agreement: float
    meaning: str


NEAR_LOSSLESS = QualityClass(
    "near-lossless", 0.01, 0.95, "as Q6_K and Q8_0: hard to tell from the original"
)
CLASSES = (
    NEAR_LOSSLESS,
    QualityClass("good", 0.05, 0.90, "as Q4_K_M and Q5_K_M: fit for most uses"),
    QualityClass("visible", 0.2, 0.80, "as Q3_K_M: other answers, more often wrong"),
)
DAMAGED = "damaged"
STATED = (
    "; ".join(
        f"{c.name}, mean KL at most {c.largest_kl:g} nats and the same top token at "
        f"{c.least_agreement:.0%} of positions or more ({c.meaning})"
        for c in CLASSES
    )
    + f"; {DAMAGED}, all else (as Q2_K)."
)


def class_of(entry: BenchEntry) -> str | None:
    """The best class whose limits both hold at the worse end of the 95% interval.

    None where there was nothing to compare with.
    """
    kl, agreement = entry.metrics.get("kl.mean"), entry.metrics.get("agreement")
    if kl is None or agreement is None:
        return None
    worst, least = ends_of(kl)[1], ends_of(agreement)[0]
    for found in CLASSES:
        if worst <= found.largest_kl and least >= found.least_agreement:
            return found.name
    return DAMAGED  # as is what is not a number
