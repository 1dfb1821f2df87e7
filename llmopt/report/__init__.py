"""Bench results and manifests as a terminal table, Markdown, or one HTML page. No torch."""

from llmopt.report.results import Comparison

__all__ = ["Comparison"]
