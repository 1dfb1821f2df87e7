"""Peak memory of error feedback (gptq) as a model gets deeper, to GPTQ's format or to GGUF.

    python benchmarks/memory/peak_memory.py [--blocks 4 8 16] [--to gguf:Q4_K_M]

Random llamas of identical blocks of width 1024 are written to a temporary folder and quantized,
each in a process of its own, with the same calibration tokens. benchmarks/process.py says what the
two counters mean; RssAnon is the one that the promise is about (memory of one block, whatever the
model's size), VmHWM is given beside it. The last column is the growth over the smallest model.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from process import Measured, measure

from llmopt.sources import DEMO_MODEL

# head and embeddings are small, so that what grows is what is measured
WIDTH = 1024
CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": WIDTH,
    "intermediate_size": 2816,
    "num_attention_heads": 16,
    "num_key_value_heads": 8,
    "head_dim": 64,
    "max_position_embeddings": 512,
    "vocab_size": 4096,
    "rms_norm_eps": 1e-5,
    "hidden_act": "silu",
    "tie_word_embeddings": True,
    "torch_dtype": "bfloat16",
}
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json")


def write_model(folder: Path, blocks: int) -> int:
    """A random model with the demo model's tokenizer; returns the weights' bytes."""
    import torch
    from safetensors.torch import save_file

    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(CONFIG | {"num_hidden_layers": blocks}))
    for name in TOKENIZER_FILES:
        shutil.copyfile(DEMO_MODEL / name, folder / name)
    generator = torch.Generator().manual_seed(0)
    tensors = {
        name: torch.ones(shape, dtype=torch.bfloat16)
        if len(shape) == 1
        else (torch.randn(shape, generator=generator) * shape[1] ** -0.5).to(torch.bfloat16)
        for name, shape in _shapes(blocks).items()
    }
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return sum(tensor.nbytes for tensor in tensors.values())


def _shapes(blocks: int) -> dict[str, tuple[int, ...]]:
    inner, key_value = CONFIG["intermediate_size"], WIDTH // 2
    block = {
        "input_layernorm": (WIDTH,),
        "post_attention_layernorm": (WIDTH,),
        "self_attn.q_proj": (WIDTH, WIDTH),
        "self_attn.k_proj": (key_value, WIDTH),
        "self_attn.v_proj": (key_value, WIDTH),
        "self_attn.o_proj": (WIDTH, WIDTH),
        "mlp.gate_proj": (inner, WIDTH),
        "mlp.up_proj": (inner, WIDTH),
        "mlp.down_proj": (WIDTH, inner),
    }
    shapes = {
        "model.embed_tokens.weight": (CONFIG["vocab_size"], WIDTH),
        "model.norm.weight": (WIDTH,),
    }
    for index in range(blocks):
        shapes |= {f"model.layers.{index}.{name}.weight": shape for name, shape in block.items()}
    return shapes


def quantize(model: Path, out: Path, arguments: argparse.Namespace) -> Measured:
    if arguments.to == "gptq":
        how = ["quantize", model, "--grid", "int4", "--group-size", "128", "--format", "gptq"]
    else:
        how = ["convert", model, "--to", arguments.to]
    command = [
        sys.executable, "-m", "llmopt", *how, "-o", out, "--method", "gptq",
        "--calibration", "demo", "--sequences", str(arguments.sequences),
        "--length", str(arguments.length), "--gate", "none", "--quiet",
    ]  # fmt: skip
    return measure(command, log=out.parent / "log")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--blocks", type=int, nargs="+", default=[4, 8, 16])
    parser.add_argument("--to", default="gptq", help="gptq, or gguf:PRESET")
    parser.add_argument("--sequences", type=int, default=16)
    parser.add_argument("--length", type=int, default=256)
    parser.add_argument("--results", type=Path, help="write the figures here, too (JSON)")
    arguments = parser.parse_args()
    rows: list[dict[str, float]] = []
    print("| blocks | weights, MB | peak RssAnon, MB | growth | peak VmHWM, MB | growth | s |")
    print("|---|---|---|---|---|---|---|")
    for blocks in arguments.blocks:
        with tempfile.TemporaryDirectory() as scratch:
            size = write_model(Path(scratch) / "model", blocks)
            measured = quantize(Path(scratch) / "model", Path(scratch) / "out", arguments)
        rows.append({"blocks": blocks, "weight_bytes": size} | asdict(measured))
        print(_line(rows[-1], rows[0]), flush=True)
    if arguments.results:
        arguments.results.write_text(json.dumps(rows, indent=2) + "\n", encoding="utf-8")


def _line(row: dict[str, float], first: dict[str, float]) -> str:
    def memory(key: str) -> str:
        return f"{row[key] / 1e6:.0f} | {100 * (row[key] / first[key] - 1):+.1f}%"

    return (
        f"| {row['blocks']} | {row['weight_bytes'] / 1e6:.0f} | {memory('peak_anonymous')} "
        f"| {memory('peak_resident')} | {row['seconds']:.1f} |"
    )


if __name__ == "__main__":
    main()
