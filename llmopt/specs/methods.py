"""Quantization methods."""

from __future__ import annotations

from llmopt.specs.base import MethodSpec

METHODS: dict[str, MethodSpec] = {
    "rtn": MethodSpec(
        id="rtn",
        module="llmopt.methods.quantize.rtn",
        summary="round to nearest, with a searched scale",
        needs_calibration=False,
        hessian=False,
        settings="llmopt.methods.quantize.settings:RtnSettings",
    ),
    "gptq": MethodSpec(
        id="gptq",
        module="llmopt.methods.quantize.gptq",
        summary="error feedback through the inverse Hessian, then refinement in the same layout",
        needs_calibration=True,
        hessian=True,
        settings="llmopt.methods.quantize.settings:GptqSettings",
    ),
    "awq": MethodSpec(
        id="awq",
        module="llmopt.methods.quantize.awq",
        summary="scale the channels of large activations, clip groups, round to nearest",
        needs_calibration=True,
        hessian=True,
        settings="llmopt.methods.quantize.settings:AwqSettings",
        transform="awq",
    ),
    "quantease": MethodSpec(
        id="quantease",
        module="llmopt.methods.quantize.quantease",
        summary="coordinate descent from round to nearest; no factorisation, no damping",
        needs_calibration=True,
        hessian=True,
        settings="llmopt.methods.quantize.settings:QuantEaseSettings",
    ),
}
