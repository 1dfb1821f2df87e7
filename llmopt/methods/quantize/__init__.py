"""Algorithms that choose codes."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:  # what the table names is held to its Protocol
    from llmopt.methods.quantize import awq, gptq, quantease, rtn
    from llmopt.methods.quantize.base import Method
    from llmopt.methods.quantize.settings import (
        AwqSettings,
        GptqSettings,
        QuantEaseSettings,
        RtnSettings,
    )

    _RTN: Method[RtnSettings] = rtn
    _GPTQ: Method[GptqSettings] = gptq
    _AWQ: Method[AwqSettings] = awq
    _QUANTEASE: Method[QuantEaseSettings] = quantease
