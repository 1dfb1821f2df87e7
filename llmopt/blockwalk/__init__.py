"""The one way through a model that may not fit in memory: block by block."""

from llmopt.blockwalk.block import Inlet, LiveBlock, Pass
from llmopt.blockwalk.sink import Record, Sink
from llmopt.blockwalk.walk import walk

__all__ = ["Inlet", "LiveBlock", "Pass", "Record", "Sink", "walk"]
