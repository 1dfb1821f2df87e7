"""llama.cpp, through llama-cpp-python: GGUF files, run by the engine that they are made for."""

from llmopt.runtimes.llamacpp.engine import LlamaCppEngine
from llmopt.runtimes.llamacpp.loading import load

__all__ = ["LlamaCppEngine", "load"]
