"""Which linears of a checkpoint are stored quantized, whatever tool wrote it. No torch."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

from llmopt.errors import RequestError
from llmopt.formats.files import read_json
from llmopt.formats.kind import kind_in, reader
from llmopt.formats.layout import Quantization
from llmopt.formats.tensor_header import Headers
from llmopt.model.contents import Contents, LogicalTensor
from llmopt.model.layout import Layout
from llmopt.specs import CHECKPOINT, FORMATS, load, suggestion
from llmopt.specs.families import naming_in
from llmopt.specs.formats import FIRST_METHOD

#: where AutoGPTQ and GPTQModel repeat what config.json says, and old AutoGPTQ says it alone
QUANTIZE_CONFIG = "quantize_config.json"
#: ends of the names of scales that other tools store for activations; no runtime here uses them
STATIC_ACTIVATIONS = (".input_scale", ".activation_scale")
#: quant_method -> the module whose `parse` reads such a config
_READERS = {spec.quant_method or id_: spec.config_module for id_, spec in FORMATS.items()}


class Stored(Protocol):
    """A tensor on disk, as far as its header tells."""

    @property
    def shape(self) -> tuple[int, ...]: ...


def read_quantization(folder: Path, config: Mapping[str, Any]) -> Quantization | None:
    """How a model directory is quantized, None where it is not.

    Raises RequestError where no reader knows its way, or where the settings make no sense.
    """
    stored = config.get("quantization_config")
    if stored is None:
        if not (folder / QUANTIZE_CONFIG).is_file():
            return None
        stored = read_json(folder / QUANTIZE_CONFIG)
    if not isinstance(stored, dict):
        raise RequestError("quantization_config in config.json is not an object")
    method = str(stored.get("quant_method", FIRST_METHOD))
    if method not in _READERS:
        raise RequestError(
            f"the model is quantized with {method}, which cannot be read",
            hint=suggestion(method, _READERS),
        )
    quantization: Quantization = load(_READERS[method]).parse(stored)
    return quantization


def quantized_layers(
    stored: Mapping[str, Stored], quantization: Quantization | None
) -> dict[str, Layout]:
    """The layouts of the linears that are stored quantized, by module name.

    Raises RequestError where the config and the tensors disagree.
    """
    if quantization is None:
        return {}
    layers = {}
    for name in stored:
        module = name.removesuffix("." + quantization.marker)
        if module == name:
            continue
        layout = quantization.layer(module)
        if layout is None:
            raise RequestError(f"{module} is stored quantized, but the config says it is not")
        for suffix in quantization.required:
            if f"{module}.{suffix}" not in stored:
                raise RequestError(f"{module} has a {quantization.marker} but no {suffix}")
        layers[module] = layout
    if not layers:
        raise RequestError("the config says the model is quantized, but no linear is")
    return layers


def parts_of(module: str, stored: Iterable[str], quantization: Quantization) -> dict[str, str]:
    """suffix -> name of the tensors that make up a quantized linear."""
    names = {suffix: f"{module}.{suffix}" for suffix in quantization.suffixes}
    present = stored if isinstance(stored, Mapping) else set(stored)
    return {suffix: name for suffix, name in names.items() if name in present}


def logical_tensors(
    headers: Headers, quantization: Quantization | None
) -> dict[str, LogicalTensor]:
    """The model's tensors in the checkpoint's order, under the names that it gives them."""
    layers = quantized_layers(headers.tensors, quantization)
    owner: dict[str, str] = {}
    found: dict[str, LogicalTensor] = {}
    for module, layout in layers.items():
        assert quantization is not None
        parts = parts_of(module, headers.tensors, quantization)
        owner |= dict.fromkeys(parts.values(), module)
        shapes = {suffix: headers.tensors[name].shape for suffix, name in parts.items()}
        size = sum(headers.tensors[name].nbytes for name in parts.values())
        name = f"{module}.weight"
        found[name] = LogicalTensor(name, quantization.shape(layout, shapes), size, layout)
    logical: dict[str, LogicalTensor] = {}
    for name, header in headers.tensors.items():
        if name in owner:
            logical[f"{owner[name]}.weight"] = found[f"{owner[name]}.weight"]
        else:
            dtype = header.dtype
            logical[name] = LogicalTensor(name, header.shape, header.nbytes, dtype=dtype)
    return logical


def read_contents(folder: Path) -> Contents:
    """What a model directory holds, from its config and headers alone."""
    return reader(kind_in(folder)).contents(folder)


def contents_of(headers: Headers, kind: str = CHECKPOINT) -> Contents:
    """What headers and a config say of a model that lies in this kind of artifact."""
    naming = naming_in(headers.config, headers.tensors)
    quantization = read_quantization(headers.folder, headers.config)
    logical = {
        naming.rename(name): replace(tensor, name=naming.rename(name))
        for name, tensor in logical_tensors(headers, quantization).items()
    }
    found = quantization.format if quantization else None
    return Contents(headers.config, naming.family, naming, logical, found, kind)
