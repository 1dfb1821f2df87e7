"""What config.json says of a quantized checkpoint, by a module for each format. No torch."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Protocol

from llmopt.formats.engine_names import OWN_NAMES, EngineNames
from llmopt.formats.layout import Quantization
from llmopt.model.layout import Layout
from llmopt.specs import FORMATS, load


class ConfigReader(Protocol):
    """The `config_module` of a format."""

    def parse(self, stored: Mapping[str, Any], /) -> Quantization:
        """The settings in a `quantization_config`; RequestError where they cannot be read."""


class ConfigWriter(ConfigReader, Protocol):
    """That of a format that is written."""

    def quantization_config(
        self,
        layers: Mapping[str, Layout],
        *,
        version: str | None,
        unquantized: Iterable[str] = (),
        head: str = "lm_head",
        names: EngineNames = OWN_NAMES,
        damping: float | None = None,
        true_sequential: bool = False,
    ) -> Mapping[str, Any]:
        """What `quantization_config` is to say; RequestError where it cannot say it of all layers.

        `layers` are all quantized linears by module name, `unquantized` the other linears, `head`
        the output head's name, `names` those that engines have for these modules. What a format
        has no place for, it leaves out.
        """


def config_of(format_id: str) -> ConfigWriter:
    """What writes the config of a format."""
    writer: ConfigWriter = load(FORMATS[format_id].config_module)
    return writer
