"""Write a checkpoint of random weights in any shape, a tensor in memory at a time.

    python scripts/random_checkpoint.py llama-8b -o OUT [--blocks 4] [--dtype bfloat16] [--seed 0]

The first argument is a config.json, or one of the shapes in SHAPES. What is written is a model
folder as a hub has it: config, shards of at most 4 GiB with an index, and the demo model's
tokenizer, whose vocabulary any larger one contains. Such a model says nothing of quality; it has
the sizes of a real one, and activations of ordinary size, so that memory, disk and time are those
of a real one.
"""

from __future__ import annotations

import argparse
import json
import math
import shutil
import struct
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import BinaryIO

import torch
from torch import Tensor, nn

from llmopt.formats.experts import unfuse
from llmopt.formats.safetensors import DTYPE_NAMES
from llmopt.pretrained import model_config, model_of
from llmopt.sources import DEMO_MODEL
from llmopt.specs.families import FamilySpec, family_of

_LLAMA = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "vocab_size": 128256,
    "hidden_act": "silu",
    "rms_norm_eps": 1e-5,
    "rope_theta": 500000.0,
    "max_position_embeddings": 8192,
    "tie_word_embeddings": False,
    "attention_bias": False,
    "mlp_bias": False,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
#: config.json of what is usual
SHAPES: dict[str, dict[str, object]] = {
    "llama-1b": _LLAMA
    | {"hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16, "head_dim": 64}
    | {"num_attention_heads": 32, "num_key_value_heads": 8, "tie_word_embeddings": True},
    "llama-8b": _LLAMA
    | {"hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32, "head_dim": 128}
    | {"num_attention_heads": 32, "num_key_value_heads": 8},
    "llama-70b": _LLAMA
    | {"hidden_size": 8192, "intermediate_size": 28672, "num_hidden_layers": 80, "head_dim": 128}
    | {"num_attention_heads": 64, "num_key_value_heads": 8},
}
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json")
SHARD_BYTES = 4 << 30
#: weights that are drawn together
_ROWS_ELEMENTS = 1 << 24

Shapes = dict[str, tuple[int, ...]]


def write_model(
    folder: Path, config: Mapping[str, object], *, dtype: torch.dtype, seed: int = 0
) -> int:
    """Write the folder, which must not be there; returns the weights' bytes.

    Linears are normal with a variance of 1 / inputs, embeddings with 1, gains are one and biases
    zero. `config` is a config.json of a supported family; each tensor depends on the seed and its
    name alone, so that models of more blocks begin as those of fewer do.
    """
    folder.mkdir(parents=True)
    said = json.dumps({**config, "torch_dtype": str(dtype).removeprefix("torch.")}, indent=2)
    (folder / "config.json").write_text(said + "\n", encoding="utf-8")
    for name in TOKENIZER_FILES:
        shutil.copyfile(DEMO_MODEL / name, folder / name)
    shards = list(_dealt(shapes_of(config), dtype.itemsize))
    names = [f"model-{i + 1:05d}-of-{len(shards):05d}.safetensors" for i in range(len(shards))]
    if len(shards) == 1:
        names = ["model.safetensors"]
    else:
        placed = {
            tensor: name for name, shard in zip(names, shards, strict=True) for tensor in shard
        }
        index = json.dumps({"metadata": {}, "weight_map": placed}, indent=2)
        (folder / "model.safetensors.index.json").write_text(index + "\n", encoding="utf-8")
    for name, shard in zip(names, shards, strict=True):
        _write_shard(folder / name, shard, dtype, seed)
    return sum(math.prod(shape) for shard in shards for shape in shard.values()) * dtype.itemsize


def shapes_of(config: Mapping[str, object]) -> Shapes:
    """Every tensor of a checkpoint with this config, under the names that checkpoints have."""
    from accelerate import init_empty_weights

    family = family_of(config)
    with init_empty_weights(include_buffers=False):
        settings = model_config(family.language_config(config))
        model: nn.Module = model_of(settings, dtype=torch.float32, attention=family.attention)
    unfuse(model, family)
    return dict(_named(model, family, tied=bool(config.get("tie_word_embeddings", True))))


def _named(
    model: nn.Module, family: FamilySpec, *, tied: bool
) -> Iterator[tuple[str, tuple[int, ...]]]:
    parameters = dict(model.named_parameters(remove_duplicate=False))
    naming = family.naming(list(parameters))
    for name, parameter in parameters.items():
        if not (tied and name == f"{family.head}.weight"):
            yield naming.name(name), tuple(parameter.shape)


def _dealt(shapes: Shapes, width: int) -> Iterator[Shapes]:
    shard: Shapes = {}
    size = 0
    for name, shape in shapes.items():
        needed = math.prod(shape) * width
        if shard and size + needed > SHARD_BYTES:
            yield shard
            shard, size = {}, 0
        shard[name] = shape
        size += needed
    yield shard


def _write_shard(path: Path, shapes: Shapes, dtype: torch.dtype, seed: int) -> None:
    entries: dict[str, object] = {"__metadata__": {"format": "pt"}}
    position = 0
    for name, shape in shapes.items():
        size = math.prod(shape) * dtype.itemsize
        place = [position, position + size]
        entries[name] = {"dtype": DTYPE_NAMES[dtype], "shape": list(shape), "data_offsets": place}
        position += size
    header = json.dumps(entries, separators=(",", ":")).encode()
    header += b" " * (-len(header) % 8)
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(header)) + header)
        for name, shape in shapes.items():
            _write_tensor(file, name, shape, dtype, seed)


def _write_tensor(
    file: BinaryIO, name: str, shape: tuple[int, ...], dtype: torch.dtype, seed: int
) -> None:
    generator = torch.Generator().manual_seed(hash_of(name) ^ seed)
    if len(shape) == 1:
        _write(file, (torch.zeros if name.endswith("bias") else torch.ones)(shape).to(dtype))
        return
    deviation = 1.0 if "embed" in name or ".wte" in name else shape[1] ** -0.5
    rows = max(1, _ROWS_ELEMENTS // math.prod(shape[1:]))
    for start in range(0, shape[0], rows):
        part = (min(rows, shape[0] - start), *shape[1:])
        _write(file, torch.randn(part, generator=generator).mul_(deviation).to(dtype))


def hash_of(name: str) -> int:
    """A number that is a name's on every machine."""
    import zlib

    return zlib.crc32(name.encode())


def _write(file: BinaryIO, tensor: Tensor) -> None:
    file.write(tensor.view(torch.uint8).numpy().data)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("shape", help=f"a config.json, or one of: {', '.join(SHAPES)}")
    parser.add_argument("-o", "--out", type=Path, required=True)
    parser.add_argument("--blocks", type=int, help="other than the shape's own number")
    parser.add_argument("--dtype", choices=["bfloat16", "float16", "float32"], default="bfloat16")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    config = SHAPES.get(arguments.shape) or json.loads(Path(arguments.shape).read_text("utf-8"))
    if arguments.blocks:
        config = {**config, "num_hidden_layers": arguments.blocks}
    dtype = getattr(torch, arguments.dtype)
    size = write_model(arguments.out, config, dtype=dtype, seed=arguments.seed)
    print(f"{arguments.out}: {size / 1e9:.2f} GB of weights")


if __name__ == "__main__":
    main()
