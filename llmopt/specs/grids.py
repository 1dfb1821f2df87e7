"""Number formats."""

from __future__ import annotations

from llmopt.specs.base import GridSpec

GRIDS: dict[str, GridSpec] = {
    f"int{bits}": GridSpec(
        id=f"int{bits}",
        module="llmopt.grids.integer",
        bits=bits,
        summary=f"{bits}-bit integers with a float16 scale (and zero point) per group",
    )
    for bits in (2, 3, 4, 8)
} | {
    "fp8": GridSpec(
        id="fp8",
        module="llmopt.grids.fp8",
        bits=8,
        asymmetric=False,
        scale_bytes=4,
        summary="8-bit floating point (E4M3) with a float32 scale per group, usually per row",
    ),
    "nf4": GridSpec(
        id="nf4",
        module="llmopt.grids.nf4",
        bits=4,
        asymmetric=False,
        scale_bytes=4,
        summary="4-bit NormalFloat (QLoRA): 16 quantiles of a normal distribution, float32 scales",
    ),
}
