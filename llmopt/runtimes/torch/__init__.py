"""The PyTorch runtime: plain and GPTQ directories on CPU or GPU."""

from llmopt.runtimes.torch.engine import TorchEngine
from llmopt.runtimes.torch.loading import load

__all__ = ["TorchEngine", "load"]
