"""Builds a tiny model of every causal type that transformers knows, and says which compute.

`tiny_configs.json` has what single types need besides the rules of `llmopt.discovery.shrink`:
settings that replace the class's defaults, and again what the rules make of them.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from llmopt.discovery.layers import BlockKind, kinds_of
from llmopt.discovery.shrink import tiny_config, tiny_model

_CONFIGS = Path(__file__).with_name("tiny_configs.json")
_SHAPE = (2, 16)


def types() -> list[str]:
    """The causal types that the installed transformers knows."""
    return sorted(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)


def own_of(model_type: str) -> dict[str, Any]:
    """What the type needs besides the rules: `own` of `tiny_config`."""
    own: dict[str, Any] = json.loads(_CONFIGS.read_text(encoding="utf-8")).get(model_type, {})
    return own


def config_of(model_type: str) -> dict[str, Any]:
    """A config.json: what the class has by default, with what the type needs in place of it."""
    own = own_of(model_type)
    default = CONFIG_MAPPING[model_type](**own).to_dict()
    return {**default, "model_type": model_type}


def tiny(model_type: str, *, seed: int = 0, dtype: torch.dtype = torch.float32) -> nn.Module:
    """A tiny model of the type."""
    config = tiny_config(config_of(model_type), own_of(model_type))
    return tiny_model(config, seed=seed, dtype=dtype)


def _tried(model_type: str) -> str:
    """A line that says what the type's tiny model is; raises whatever keeps it from computing."""
    model = tiny(model_type)
    generator = torch.Generator().manual_seed(0)
    # the first and the last ids are special
    tokens = torch.randint(3, 100, _SHAPE, generator=generator)
    with torch.no_grad():
        logits = model(input_ids=tokens, use_cache=False).logits
    if not logits.isfinite().all():
        raise ValueError("logits are not finite")
    size = sum(each.numel() for each in model.parameters())
    kinds = kinds_of(model)
    distinct = list(dict.fromkeys(kinds))
    layers = " ".join(str(distinct.index(kind)) for kind in kinds)
    said = "; ".join(f"{index}: {'/'.join(_words(kind))}" for index, kind in enumerate(distinct))
    return f"{type(model).__name__}, {size} weights, {len(kinds)} layers: {layers} ({said})"


def _words(kind: BlockKind) -> list[str]:
    said = [value for value in kind.settings if isinstance(value, str)]
    return [*said, f"{len(kind.names)} tensors", *(["shares"] if kind.shared else [])]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("types", nargs="*", help="all of them without any")
    wanted = parser.parse_args().types or types()
    done = 0
    for model_type in wanted:
        start = time.perf_counter()
        try:
            said = f"OK {model_type}: {_tried(model_type)}"
            done += 1
        except Exception as error:
            cause = " ".join(str(error).split())[:300]
            said = f"BAD {model_type}: {type(error).__name__}: {cause}"
        print(f"{said}, {time.perf_counter() - start:.1f} s", flush=True)
    print(f"{done} of {len(wanted)}")


if __name__ == "__main__":
    main()
