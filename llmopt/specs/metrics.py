"""What a bench measures that a gate can name."""

from __future__ import annotations

#: metric -> (what it is, whether it comes with a 95% interval: `.low` and `.high`)
_MEASURED = {
    "kl.mean": ("mean KL divergence from the base, nats per token", True),
    "kl.median": ("median KL divergence over positions", False),
    "kl.p99": ("99th percentile of the KL divergence", False),
    "kl.p99_9": ("99.9th percentile of the KL divergence", False),
    "kl.max": ("largest KL divergence", False),
    "agreement": ("share of positions with the base's top token", True),
    "flips.lost": ("share of positions where only the base's top token is the text's", False),
    "flips.gained": ("share of positions where only the model's top token is the text's", False),
    "flips.changed": ("share of positions where both top tokens are wrong and differ", False),
    "perplexity": ("perplexity per token", True),
    "perplexity.ratio": ("perplexity over the base's", True),
    "weights.offset": ("largest mean error of any linear's groups, in steps of its grid", False),
    "weights.gain": ("how far any linear's weights are from following its codes", False),
    "size.ratio": ("bytes of the weight files over the base's", False),
    "size.bytes": ("bytes of the weight files", False),
    "bits_per_weight": ("bits of the weight files per weight of the whole model", False),
}
#: those that need no model to compare with
_WITHOUT_BASE = ("perplexity", "size.bytes", "bits_per_weight")
METRICS: dict[str, str] = {
    f"{name}{suffix}": meaning
    for name, (meaning, interval) in _MEASURED.items()
    for suffix in (("", ".low", ".high") if interval else ("",))
}


def needs_base(metric: str) -> bool:
    """Whether a metric says how a model compares with another."""
    return metric.removesuffix(".low").removesuffix(".high") not in _WITHOUT_BASE
