"""Bench results and manifests as a terminal table, Markdown, or one HTML page. No torch."""

from llmopt.report.comparison import Comparison

__all__ = ["Comparison"]
