"""What config.json says about an AWQ checkpoint. No torch.

One group size holds for the whole model. `modules_to_not_convert` names what is left unquantized,
and readers differ in what a name there leaves out: AutoAWQ, transformers 4 and SGLang every module
whose name contains it, vLLM those that start with it, transformers 5 those that it matches as a
regular expression from the start, up to a dot, or at the end. We write full names, which all of
them take alike unless such a name is part of another one: that is refused.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from llmopt import __version__
from llmopt.artifact import JsonObject
from llmopt.errors import RequestError
from llmopt.formats.engine_names import OWN_NAMES, EngineNames
from llmopt.model.layout import Layout
from llmopt.specs.formats import AWQ

_VERSION = "gemm"
_READ_GROUPS = (-1, 16, 32, 64, 128)


@dataclass(frozen=True, kw_only=True)
class AwqConfig:
    """The settings of a whole checkpoint."""

    layout: Layout
    skipped: tuple[str, ...]
    format = AWQ
    suffixes = ("qweight", "qzeros", "scales")
    required = ("qzeros", "scales")
    marker = "qweight"

    def layer(self, module: str) -> Layout | None:
        """The layout of a module; None where it is left unquantized."""
        skipped = any(f".{name}." in f".{module}." for name in self.skipped)
        return None if skipped else self.layout

    def shape(
        self,
        layout: Layout,  # noqa: ARG002  # one protocol for all formats
        parts: Mapping[str, tuple[int, ...]],
    ) -> tuple[int, int]:
        cols, words = parts["qweight"]
        return words * 8, cols


def quantization_config(
    layers: Mapping[str, Layout],
    *,
    unquantized: Iterable[str] = (),
    names: EngineNames = OWN_NAMES,
    **_: object,
) -> JsonObject:
    """What config.json's `quantization_config` says.

    `layers` are all quantized linears by module name and `unquantized` the other linears; `names`
    are those that engines have for these modules. Raises RequestError naming a linear whose
    settings one AWQ config cannot express.
    """
    sizes = Counter(layer.group_size for layer in layers.values())
    usual = sizes.most_common(1)[0][0]
    for name, layer in layers.items():
        if layer.group_size != usual:
            raise RequestError(
                f"AWQ has one group size for the whole model: {name} has groups of "
                f"{layer.group_size}, others of {usual}"
            )
    skipped = names.all_of(unquantized)
    _check_skipped(skipped, layers)
    return {
        "quant_method": AWQ,
        "version": _VERSION,
        "bits": 4,
        "group_size": usual,
        "zero_point": True,
        "modules_to_not_convert": [*skipped] or None,
        "meta": {"quantizer": [f"llmopt:{__version__}"]},
    }


def parse(stored: Mapping[str, Any]) -> AwqConfig:
    """The settings in a `quantization_config`; RequestError where they cannot be read."""
    named = (stored.get(key) for key in ("version", "checkpoint_format", "format"))
    version = str(next(filter(None, named), _VERSION)).lower()
    if version != _VERSION:
        raise RequestError(f"the AWQ version {version!r} cannot be read, only {_VERSION!r}")
    if not stored.get("zero_point", True):
        raise RequestError("AWQ without zero points cannot be read")
    if str(stored.get("backend") or "autoawq") == "llm-awq":
        raise RequestError("the AWQ layout of llm-awq cannot be read, only AutoAWQ's")
    if any(not pattern.startswith("-:") for pattern in stored.get("dynamic") or ()):
        raise RequestError("AWQ with other settings for single modules cannot be read")
    bits = stored.get("bits", stored.get("w_bit"))
    group_size = stored.get("group_size", stored.get("q_group_size"))
    skipped = stored.get("modules_to_not_convert") or []
    if bits is None or group_size is None:
        raise RequestError("the quantization config does not say bits and group_size")
    if bits != 4:
        raise RequestError(f"the quantization config says {bits} bits, AWQ has 4")
    if group_size not in _READ_GROUPS:
        raise RequestError(f"the AWQ group size {group_size!r} cannot be read")
    if not isinstance(skipped, list) or not all(isinstance(name, str) for name in skipped):
        raise RequestError("modules_to_not_convert is not a list of names")
    layout = Layout(grid="int4", group_size=group_size, symmetric=False)
    return AwqConfig(layout=layout, skipped=tuple(skipped))


def _check_skipped(skipped: Iterable[str], layers: Mapping[str, Layout]) -> None:
    """RequestError where a reader would leave a quantized linear out, too."""
    lines = "\n".join(layers)  # a model of experts has tens of thousands
    for name in skipped:
        if name in lines:
            layer = next(layer for layer in layers if name in layer)
            raise RequestError(
                f"an AWQ config cannot leave {name} unquantized without {layer}: "
                "its readers go by parts of names",
                hint="quantize both or neither, or use another format",
            )
