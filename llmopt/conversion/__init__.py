"""What a conversion does with each tensor, decided from names, shapes and layouts. No torch."""

from __future__ import annotations

from llmopt.conversion.layouts import Conversion, contents_after, conversions

__all__ = ["Conversion", "contents_after", "conversions"]
