"""How long steps take on this machine: what it was measured to do, and what follows for a plan."""

from llmopt.forecast.kept import Host, Speeds, here, keep, place, speeds
from llmopt.forecast.plans import of_steps
from llmopt.forecast.times import in_words, seconds

__all__ = [
    "Host",
    "Speeds",
    "here",
    "in_words",
    "keep",
    "of_steps",
    "place",
    "seconds",
    "speeds",
]
