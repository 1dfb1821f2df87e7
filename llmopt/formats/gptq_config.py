"""What config.json and quantize_config.json say about a GPTQ checkpoint. No torch.

`dynamic` is GPTQModel's way to give single modules settings of their own, read by vLLM and SGLang,
too: its keys are regular expressions matched from the start of a module's name; those that begin
with "-:" leave the module unquantized, those with "+:" override what their value names, and the
first that matches counts.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from llmopt import __version__
from llmopt.artifact import JsonObject
from llmopt.errors import RequestError
from llmopt.formats.engine_names import OWN_NAMES, EngineNames
from llmopt.model.layout import Layout
from llmopt.specs.formats import GPTQ_V1, GPTQ_V2

BITS = (2, 3, 4, 8)

#: tensors of a quantized linear; a bias stays as it was
SUFFIXES = ("qweight", "qzeros", "scales", "g_idx")
#: what transformers takes for a damping where none was used; it refuses 0
_DAMPING_OF_NONE = 0.01


@dataclass(frozen=True, kw_only=True)
class GptqConfig:
    """The settings of a whole checkpoint: a default layout and what differs from it."""

    layout: Layout
    format: str
    dynamic: Mapping[str, Mapping[str, Any]]
    suffixes = SUFFIXES
    required = ("qweight", "qzeros", "scales")
    marker = "qweight"

    def layer(self, module: str) -> Layout | None:
        """The layout of a module; None where it is left unquantized."""
        for pattern, override in self.dynamic.items():
            if not re.match(pattern.removeprefix("-:").removeprefix("+:"), module):
                continue
            return None if pattern.startswith("-:") else _overridden(self.layout, override)
        return self.layout

    def shape(self, layout: Layout, parts: Mapping[str, tuple[int, ...]]) -> tuple[int, int]:
        words, rows = parts["qweight"]
        return rows, words * 32 // layout.bits


def quantization_config(
    layers: Mapping[str, Layout],
    *,
    version: str | None,
    unquantized: Iterable[str] = (),
    head: str = "lm_head",
    names: EngineNames = OWN_NAMES,
    damping: float | None = None,
    true_sequential: bool = False,
) -> JsonObject:
    """What config.json's `quantization_config` and quantize_config.json say, both the same.

    `layers` are all quantized linears by module name and `unquantized` the other linears. `head`
    is the output head's name, `names` are those that engines have for these modules.
    """
    usual = Counter(layers.values()).most_common(1)[0][0]
    dynamic: JsonObject = {f"-:{p}": JsonObject() for p in names.patterns(unquantized)}
    for other in dict.fromkeys(layer for layer in layers.values() if layer != usual):
        alike = [name for name, layer in layers.items() if layer == other]
        dynamic |= {f"+:{p}": _settings(other) for p in names.patterns(alike)}
    config: JsonObject = {
        "quant_method": GPTQ_V1,
        "checkpoint_format": version,
        **_settings(usual),
        "damp_percent": damping or _DAMPING_OF_NONE,
        "true_sequential": true_sequential,
        "static_groups": False,
        "lm_head": head in layers,
        "pack_dtype": "int32",
        "meta": {"quantizer": [f"llmopt:{__version__}"]},
    }
    return {**config, "dynamic": dynamic} if dynamic else config


def parse(stored: Mapping[str, Any]) -> GptqConfig:
    """The settings in a `quantization_config`; RequestError where they make no sense."""
    version = stored.get("checkpoint_format") or GPTQ_V1
    if version not in (GPTQ_V1, GPTQ_V2):
        raise RequestError(f"the GPTQ checkpoint format {version!r} cannot be read")
    try:
        layout = Layout(
            grid=_grid(stored["bits"]),
            group_size=int(stored["group_size"]),
            symmetric=bool(stored.get("sym", True)),
            desc_act=bool(stored.get("desc_act", False)),
        )
        dynamic = dict(stored.get("dynamic") or {})
        for pattern in dynamic:
            re.compile(pattern.removeprefix("-:").removeprefix("+:"))
    except KeyError as error:
        raise RequestError(f"the quantization config does not say {error.args[0]}") from error
    except (TypeError, ValueError, AttributeError, re.error) as error:
        raise RequestError(f"the quantization config is not valid: {error}") from error
    return GptqConfig(layout=layout, format=version, dynamic=dynamic)


def _grid(bits: Any) -> str:
    if int(bits) not in BITS:
        raise RequestError(f"the quantization config says {bits} bits, known: {BITS}")
    return f"int{int(bits)}"


def _overridden(layout: Layout, override: Mapping[str, Any]) -> Layout:
    known = {"group_size": "group_size", "sym": "symmetric", "desc_act": "desc_act"}
    changes = {known[key]: override[key] for key in known if key in override}
    if "bits" in override:
        changes["grid"] = _grid(override["bits"])
    return replace(layout, **changes)


def _settings(layer: Layout) -> JsonObject:
    return {
        "bits": layer.bits,
        "group_size": layer.group_size,
        "desc_act": layer.desc_act,
        "sym": layer.symmetric,
    }
