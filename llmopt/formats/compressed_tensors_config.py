"""What config.json says about a compressed-tensors checkpoint. No torch.

`config_groups` are schemes: how weights and inputs are quantized, and `targets`, the modules that
this holds for. A target is a class ("Linear"), a full name, or a regular expression after "re:"
that is matched from a name's start; names and expressions come before classes. `ignore` lists, in
the same way, modules that no group holds for. The most common scheme is written for "Linear", with
all other linears in `ignore` or, by name, in a group of their own. vLLM wants one scheme for
linears that it fuses (q, k and v; gate and up), and goes by class before it takes a fused module
apart: such a group's targets match the fused module's name, too.

Which sub-format a linear has follows from its grid and activations (`sub_format`); several in one
model are "mixed-precision", and each group then names its own.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from llmopt.artifact import JsonObject
from llmopt.errors import RequestError
from llmopt.formats.engine_names import OWN_NAMES, EngineNames
from llmopt.model.layout import Layout
from llmopt.specs.formats import COMPRESSED_TENSORS

PACKED = "pack-quantized"
INTEGER = "int-quantized"
FLOAT = "float-quantized"
MIXED = "mixed-precision"
_FORMATS = (PACKED, INTEGER, FLOAT, MIXED, "naive-quantized")
_BITS = (2, 3, 4, 8)
#: grid -> what schemes say of it
_TYPES = {f"int{bits}": ("int", bits) for bits in _BITS} | {"fp8": ("float", 8)}


def sub_format(layout: Layout) -> str:
    """How a linear with this layout is stored."""
    if layout.grid == "fp8":
        return FLOAT
    return INTEGER if layout.activations else PACKED


@dataclass(frozen=True, kw_only=True)
class Scheme:
    """A config group: None for the layout of modules that it leaves as they are."""

    targets: tuple[str, ...]
    layout: Layout | None


@dataclass(frozen=True, kw_only=True)
class CompressedTensorsConfig:
    """The settings of a whole checkpoint.

    input_scale and input_zero_point, which static activations have, belong to a linear and are not
    used: our runtime does not round such activations.
    """

    schemes: tuple[Scheme, ...]
    ignore: tuple[str, ...]
    format = COMPRESSED_TENSORS
    suffixes = (
        "weight_packed",
        "weight",
        "weight_scale",
        "weight_zero_point",
        "weight_g_idx",
        "weight_shape",
        "input_scale",
        "input_zero_point",
    )
    required = ("weight_scale",)
    marker = "weight_scale"

    def layer(self, module: str) -> Layout | None:
        """The layout of a linear; None where it is left unquantized."""
        if any(_matches(target, module) for target in self.ignore):
            return None
        by_name = [s for s in self.schemes if any(_matches(t, module) for t in s.targets)]
        by_class = [s for s in self.schemes if "Linear" in s.targets]
        return next((scheme.layout for scheme in (*by_name, *by_class)), None)

    def shape(self, layout: Layout, parts: Mapping[str, tuple[int, ...]]) -> tuple[int, int]:
        """(outputs, inputs); an upper bound of the inputs where codes leave a word unfilled."""
        if "weight_packed" in parts:
            rows, words = parts["weight_packed"]
            groups = parts["weight_scale"][-1]
            grouped = layout.group_size != -1 and groups > 1
            return rows, groups * layout.group_size if grouped else words * 32 // layout.bits
        if len(parts.get("weight", ())) != 2:
            raise RequestError("a linear has a weight_scale but no matrix of codes")
        rows, cols = parts["weight"]
        return rows, cols


def quantization_config(
    layers: Mapping[str, Layout],
    *,
    unquantized: Iterable[str] = (),
    head: str = "lm_head",
    names: EngineNames = OWN_NAMES,
    **_: object,
) -> JsonObject:
    """What config.json's `quantization_config` says.

    `layers` are all quantized linears by module name, `unquantized` the other linears, `head` the
    output head's name, `names` those that engines have for these modules. Raises RequestError
    naming a linear with settings that no engine runs.
    """
    for name, layer in layers.items():
        _check(name, layer)
    plain = [*unquantized, *([] if head in layers else [head])]
    by_layout: dict[Layout, list[str]] = {}
    for name, layer in layers.items():
        by_layout.setdefault(layer, []).append(name)
    formats = sorted({sub_format(layout) for layout in by_layout})
    usual = max(by_layout, key=lambda layout: len(by_layout[layout]))
    others = [layout for layout in by_layout if layout != usual]
    # the class comes last: the package warns of targets that it finds nothing left for
    groups = [(layout, _targets(by_layout[layout], names)) for layout in others]
    groups.append((usual, ["Linear"]))
    return {
        "quant_method": COMPRESSED_TENSORS,
        "format": formats[0] if len(formats) == 1 else MIXED,
        "quantization_status": "compressed",
        "global_compression_ratio": None,
        "kv_cache_scheme": None,
        "config_groups": {
            f"group_{index}": _scheme(layout, targets, own_format=len(formats) > 1)
            for index, (layout, targets) in enumerate(groups)
        },
        "ignore": [*names.all_of(plain)],
    }


def _targets(modules: list[str], names: EngineNames) -> list[str]:
    """Targets that match these linears under every name; no target is left that matches nothing."""
    if names.all_of(modules) == modules:
        return modules
    return [f"re:{pattern}" for pattern in names.patterns(modules)]


def parse(stored: Mapping[str, Any]) -> CompressedTensorsConfig:
    """The settings in a `quantization_config`; RequestError where they cannot be read."""
    _refuse_unreadable(stored)
    schemes = []
    groups = stored.get("config_groups")
    if not isinstance(groups, dict) or not groups:
        raise RequestError("the quantization config has no config_groups")
    try:
        for group in groups.values():
            targets = tuple(str(target) for target in group["targets"])
            schemes.append(Scheme(targets=targets, layout=_layout(group)))
        ignore = tuple(str(name) for name in stored.get("ignore") or ())
        for target in (*ignore, *(t for scheme in schemes for t in scheme.targets)):
            re.compile(target.removeprefix("re:") if target.startswith("re:") else "")
    except KeyError as error:
        raise RequestError(f"the quantization config does not say {error.args[0]}") from error
    except (TypeError, ValueError, AttributeError, re.error) as error:
        raise RequestError(f"the quantization config is not valid: {error}") from error
    return CompressedTensorsConfig(schemes=tuple(schemes), ignore=ignore)


def _refuse_unreadable(stored: Mapping[str, Any]) -> None:
    """RequestError where decoding the weights alone would not give the model."""
    formats = [stored.get("format")]
    formats += [group.get("format") for group in (stored.get("config_groups") or {}).values()]
    for name in filter(None, formats):
        if name not in _FORMATS:
            raise RequestError(f"the compressed-tensors format {name!r} cannot be read")
    if stored.get("quantization_status", "compressed") != "compressed":
        raise RequestError("the checkpoint is calibrated, but its weights are not compressed")
    sparsity = stored.get("sparsity_config") or {}
    if sparsity.get("format", "dense") != "dense":
        raise RequestError(f"the sparse format {sparsity['format']!r} cannot be read")
    if stored.get("kv_cache_scheme"):
        raise RequestError("the checkpoint quantizes the KV cache, too, which cannot be read")
    if (stored.get("transform_config") or {}).get("config_groups"):
        raise RequestError("the checkpoint transforms activations, which cannot be read")


def _layout(group: Mapping[str, Any]) -> Layout | None:
    weights = group.get("weights")
    if weights is None:
        return None
    if group.get("output_activations"):
        raise RequestError("a checkpoint that quantizes outputs of linears cannot be read")
    kind, bits = str(weights.get("type", "int")), int(weights["num_bits"])
    grid = next((grid for grid, known in _TYPES.items() if known == (kind, bits)), None)
    if grid is None:
        raise RequestError(f"compressed-tensors weights of {bits} bits ({kind}) cannot be read")
    return Layout(
        grid=grid,
        group_size=_group_size(weights),
        symmetric=bool(weights.get("symmetric", True)),
        desc_act=weights.get("actorder") in ("group", "dynamic", True),
        activations=_activations(group.get("input_activations")),
        blocks=weights.get("strategy") == "block",
    )


def _group_size(weights: Mapping[str, Any]) -> int:
    size = weights.get("group_size")
    strategy = weights.get("strategy") or ("group" if size and size > 0 else "channel")
    if strategy in ("channel", "tensor"):
        return -1
    if strategy == "group":
        return int(weights["group_size"])
    if strategy == "block":
        rows, cols = weights["block_structure"]
        if rows == cols and int(cols) > 0:
            return int(cols)
        raise RequestError(f"weights in blocks of {rows} x {cols} cannot be read")
    raise RequestError(f"the compressed-tensors strategy {strategy!r} cannot be read")


def _activations(inputs: Mapping[str, Any] | None) -> str | None:
    """The grid that inputs are rounded to; None also where that is done in a way of its own."""
    if not inputs or inputs.get("dynamic") is not True or inputs.get("strategy") != "token":
        return None
    if not inputs.get("symmetric", True) or inputs.get("num_bits") != 8:
        return None
    return "fp8" if inputs.get("type") == "float" else "int8"


def _matches(target: str, module: str) -> bool:
    if target.startswith("re:"):
        return re.match(target.removeprefix("re:"), module) is not None
    return target == module


def _check(name: str, layer: Layout) -> None:
    if layer.activations is not None:
        if layer.activations != layer.grid:
            raise RequestError(
                f"{name}: {layer.activations} activations go with {layer.activations} weights, "
                f"not {layer.grid}"
            )
        if not layer.symmetric:
            raise RequestError(f"{name}: {layer.activations} activations need a symmetric grid")
    if sub_format(layer) != PACKED and layer.group_size != -1 and not layer.blocks:
        raise RequestError(
            f"{name}: {sub_format(layer)} weights have one scale a row, not groups of "
            f"{layer.group_size}",
            hint="group_size: -1",
        )


def _scheme(layout: Layout, targets: list[str], *, own_format: bool) -> JsonObject:
    kind, bits = _TYPES[layout.grid]
    weights: JsonObject = {
        "num_bits": bits,
        "type": kind,
        "symmetric": layout.symmetric,
        "strategy": "channel" if layout.group_size == -1 else "group",
        "group_size": None if layout.group_size == -1 else layout.group_size,
        "dynamic": False,
    }
    if layout.desc_act:
        weights["actorder"] = "group"
    if layout.blocks:
        size = layout.group_size
        weights |= {"strategy": "block", "block_structure": [size, size], "group_size": None}
    inputs: JsonObject | None = None
    if layout.activations is not None:
        kind, bits = _TYPES[layout.activations]
        inputs = {
            "num_bits": bits,
            "type": kind,
            "symmetric": True,
            "strategy": "token",
            "dynamic": True,
        }
        if layout.blocks:
            inputs |= {"strategy": "group", "group_size": layout.group_size}
    scheme: JsonObject = {"targets": [*targets], "weights": weights, "input_activations": inputs}
    return {**scheme, "format": sub_format(layout)} if own_format else scheme
