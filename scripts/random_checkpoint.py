"""Write a checkpoint of random weights in any shape, a tensor in memory at a time.

    python scripts/random_checkpoint.py llama-8b -o OUT [--blocks 4] [--dtype bfloat16] [--seed 0]
    python scripts/random_checkpoint.py llama-70b -o OUT --hollow

The first argument is a config.json, or one of the shapes in SHAPES. What is written is a model
folder as a hub has it: config, shards of at most 4 GiB with an index, and the demo model's
tokenizer, whose vocabulary any larger one contains. Such a model says nothing of quality; it has
the sizes of a real one, and activations of ordinary size, so that memory, disk and time are those
of a real one. 100 MB a second is usual. With --hollow the files have headers, and holes for the
weights: at once, in next to no disk, for what reads headers alone, as `llmopt plan` does.
"""

from __future__ import annotations

import argparse
import json
import math
import shutil
import struct
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor, nn

from llmopt.formats.experts import unfuse
from llmopt.formats.safetensors import DTYPE_NAMES
from llmopt.formats.transformers_config import using_config
from llmopt.pretrained import model_config, model_of
from llmopt.sources import DEMO_MODEL
from llmopt.specs.families import FamilySpec, family_of, naming_of

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
#: of models with experts: small, so that many blocks of them can be walked
_SMALL: dict[str, Any] = {
    "architectures": None,
    "hidden_size": 512,
    "intermediate_size": 512,
    "num_hidden_layers": 8,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 64,
    "vocab_size": 4096,
    "max_position_embeddings": 2048,
    "num_experts_per_tok": 2,
    "tie_word_embeddings": False,
}
#: config.json of what is usual
SHAPES: dict[str, dict[str, Any]] = {
    "llama-512": _LLAMA
    | {"hidden_size": 512, "intermediate_size": 1408, "num_hidden_layers": 8, "head_dim": 64}
    | {"num_attention_heads": 8, "num_key_value_heads": 4, "vocab_size": 8192},
    # head and embedding are small, so that blocks are what is measured
    "llama-1024": _LLAMA
    | {"hidden_size": 1024, "intermediate_size": 2816, "num_hidden_layers": 8, "head_dim": 64}
    | {"num_attention_heads": 16, "num_key_value_heads": 8, "vocab_size": 4096},
    "llama-1b": _LLAMA
    | {"hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16, "head_dim": 64}
    | {"num_attention_heads": 32, "num_key_value_heads": 8, "tie_word_embeddings": True},
    "llama-8b": _LLAMA
    | {"hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32, "head_dim": 128}
    | {"num_attention_heads": 32, "num_key_value_heads": 8},
    "llama-70b": _LLAMA
    | {"hidden_size": 8192, "intermediate_size": 28672, "num_hidden_layers": 80, "head_dim": 128}
    | {"num_attention_heads": 64, "num_key_value_heads": 8},
    "mixtral-512": _SMALL | {"model_type": "mixtral", "num_local_experts": 8},
    "gpt-oss-512": _SMALL
    | {"model_type": "gpt_oss", "num_local_experts": 8, "sliding_window": 128}
    | {"layer_types": ["sliding_attention", "full_attention"] * 4},
    "qwen3-moe-512": _SMALL
    | {"model_type": "qwen3_moe", "num_experts": 8, "moe_intermediate_size": 512},
    "deepseek-v3-512": _SMALL
    | {"model_type": "deepseek_v3", "n_routed_experts": 8, "moe_intermediate_size": 512}
    | {"first_k_dense_replace": 1, "n_group": 1, "topk_group": 1, "num_key_value_heads": 8}
    | {"q_lora_rank": 256, "kv_lora_rank": 128, "qk_rope_head_dim": 64, "v_head_dim": 64}
    | {"qk_nope_head_dim": 64, "qk_head_dim": 128},
}
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json")
SHARD_BYTES = 4 << 30
#: what a config.json says of weights that are not these
_OF_OTHER_WEIGHTS = ("dtype", "torch_dtype", "quantization_config")
#: weights that are drawn together
_ELEMENTS_AT_ONCE = 1 << 24

Config = Mapping[str, Any]


@dataclass(frozen=True)
class Values:
    """A tensor's shape, and its values: normal with a deviation, or all the same."""

    shape: tuple[int, ...]
    deviation: float = 0.0
    constant: float = 0.0

    @property
    def elements(self) -> int:
        return math.prod(self.shape)

    def parts(self, seed: int) -> Iterator[Tensor]:
        """float32 [n, ...], runs of rows, in order."""
        generator = torch.Generator().manual_seed(seed)
        rows = max(1, _ELEMENTS_AT_ONCE // math.prod(self.shape[1:]))
        for start in range(0, self.shape[0], rows):
            part = (min(rows, self.shape[0] - start), *self.shape[1:])
            if self.deviation:
                yield torch.randn(part, generator=generator).mul_(self.deviation)
            else:
                yield torch.full(part, self.constant)


def write_model(
    folder: Path, config: Config, *, dtype: torch.dtype, seed: int = 0, hollow: bool = False
) -> int:
    """Write the folder, which must not be there; returns the weights' bytes.

    `config` is a config.json of a supported family. Each tensor depends on the seed and its name
    alone, so that models of more blocks begin as those of fewer do. `hollow`: headers alone, and
    zeros that take no disk.
    """
    folder.mkdir(parents=True)
    kept = {key: value for key, value in config.items() if key not in _OF_OTHER_WEIGHTS}
    _write_json(folder / "config.json", kept | {"torch_dtype": str(dtype).removeprefix("torch.")})
    for name in TOKENIZER_FILES:
        shutil.copyfile(DEMO_MODEL / name, folder / name)
    shards = list(_dealt(tensors_of(kept), dtype.itemsize))
    names = [f"model-{i + 1:05d}-of-{len(shards):05d}.safetensors" for i in range(len(shards))]
    size = sum(each.elements for shard in shards for each in shard.values()) * dtype.itemsize
    if len(shards) == 1:
        names = ["model.safetensors"]
    else:
        held = zip(names, shards, strict=True)
        placed = {tensor: name for name, shard in held for tensor in shard}
        index = {"metadata": {"total_size": size}, "weight_map": placed}
        _write_json(folder / "model.safetensors.index.json", index)
    for name, shard in zip(names, shards, strict=True):
        _write_shard(folder / name, shard, dtype, None if hollow else seed)
    return size


def tensors_of(config: Config) -> dict[str, Values]:
    """Every tensor of a checkpoint with this config, under the names that checkpoints have.

    Linears have a variance of 1 / inputs, and so have embeddings that are the head, too; others 1.
    Norms scale by one, biases are zero.
    """
    family = family_of(config)
    model = _empty_model(config, family)
    tied = bool(model.config.tie_word_embeddings)
    shapes = {name: tuple(each.shape) for name, each in model.named_parameters()}
    if tied:
        shapes.pop(f"{family.head}.weight", None)
    naming = naming_of(family, list(shapes))
    return {
        naming.rename(name): _values(name, shape, family, tied=tied)
        for name, shape in shapes.items()
    }


def _empty_model(config: Config, family: FamilySpec) -> nn.Module:
    """transformers' model on the meta device, its experts apart; of several parts all of them."""
    from accelerate import init_empty_weights
    from transformers import AutoModelForImageTextToText

    with using_config(), init_empty_weights(include_buffers=False):
        settings = model_config(config)
        if family.text_config is not None:
            whole: nn.Module = AutoModelForImageTextToText.from_config(settings)
            return whole
        model: nn.Module = model_of(settings, dtype=torch.float32, attention=family.attention)
    unfuse(model, family)
    return model


def _values(name: str, shape: tuple[int, ...], family: FamilySpec, *, tied: bool) -> Values:
    if len(shape) == 1:
        offset = 0.0 if "vision" in name else family.norm_gain_offset
        return Values(shape, constant=0.0 if name.endswith("bias") else 1.0 - offset)
    if name.endswith(f"{family.embedding}.weight") and not tied:
        return Values(shape, deviation=1.0)
    transposed = family.conv1d and f".{family.blocks}." in name
    inputs = shape[0] if transposed else math.prod(shape[1:])
    return Values(shape, deviation=inputs**-0.5)


def made(folder: Path, shape: str, blocks: int | None = None) -> Path:
    """The folder with such a model in bfloat16, written if it is not there.

    Without `blocks` it is the whole one, hollow.
    """
    if not folder.exists():
        config = with_blocks(config_of(shape), blocks) if blocks else config_of(shape)
        begun = folder.with_name(f".{folder.name}")
        shutil.rmtree(begun, ignore_errors=True)
        write_model(begun, config, dtype=torch.bfloat16, hollow=blocks is None)
        begun.rename(folder)
    return folder


def config_of(shape: str) -> Config:
    """One of SHAPES, or what the file says."""
    if shape in SHAPES:
        return SHAPES[shape]
    read: Config = json.loads(Path(shape).read_text(encoding="utf-8"))
    return read


def with_blocks(config: Config, blocks: int) -> Config:
    """The config of as many blocks; kinds of layers repeat as they do in the config's own."""
    if isinstance(part := config.get("text_config"), dict):
        return {**config, "text_config": with_blocks(part, blocks)}
    kinds = config.get("layer_types")
    kinds = {"layer_types": (kinds * blocks)[:blocks]} if kinds else {}
    return {**config, "n_layer" if "n_layer" in config else "num_hidden_layers": blocks, **kinds}


def _dealt(tensors: Mapping[str, Values], width: int) -> Iterator[dict[str, Values]]:
    shard: dict[str, Values] = {}
    size = 0
    for name, each in tensors.items():
        needed = each.elements * width
        if shard and size + needed > SHARD_BYTES:
            yield shard
            shard, size = {}, 0
        shard[name] = each
        size += needed
    yield shard


def _write_shard(
    path: Path, tensors: Mapping[str, Values], dtype: torch.dtype, seed: int | None
) -> None:
    entries: dict[str, object] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, each in tensors.items():
        begin, end = end, end + each.elements * dtype.itemsize
        place = {"shape": list(each.shape), "data_offsets": [begin, end]}
        entries[name] = {"dtype": DTYPE_NAMES[dtype], **place}
    header = json.dumps(entries, separators=(",", ":")).encode()
    header += b" " * (-len(header) % 8)
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(header)) + header)
        if seed is None:
            file.truncate(file.tell() + end)
            return
        for name, each in tensors.items():
            _write_tensor(file, each, dtype, zlib.crc32(name.encode()) ^ seed)


def _write_tensor(file: BinaryIO, values: Values, dtype: torch.dtype, seed: int) -> None:
    for part in values.parts(seed):
        file.write(part.to(dtype).view(torch.uint8).numpy().data)


def _write_json(path: Path, document: Config) -> None:
    path.write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("shape", help=f"a config.json, or one of: {', '.join(SHAPES)}")
    parser.add_argument("-o", "--out", type=Path, required=True)
    parser.add_argument("--blocks", type=int, help="other than the shape's own number")
    parser.add_argument("--dtype", choices=["bfloat16", "float16", "float32"], default="bfloat16")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--hollow", action="store_true", help="headers, and holes for weights")
    arguments = parser.parse_args()
    if arguments.out.exists():
        parser.error(f"{arguments.out} is there already")
    config = config_of(arguments.shape)
    if arguments.blocks:
        config = with_blocks(config, arguments.blocks)
    dtype = getattr(torch, arguments.dtype)
    size = write_model(
        arguments.out, config, dtype=dtype, seed=arguments.seed, hollow=arguments.hollow
    )
    print(f"{arguments.out}: {size / 1e9:.2f} GB of weights")


if __name__ == "__main__":
    main()
