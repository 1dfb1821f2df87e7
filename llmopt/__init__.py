"""llmopt: make language models smaller, faster and cheaper, with proof that they are as good."""

__version__ = "0.1.0"
