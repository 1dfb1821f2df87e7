"""The one way through a model that may not fit in memory: block by block."""

from llmopt.blockwalk.inlet import Inlet, Operation
from llmopt.blockwalk.sink import Sink
from llmopt.blockwalk.walk import walk

__all__ = ["Inlet", "Operation", "Sink", "walk"]
