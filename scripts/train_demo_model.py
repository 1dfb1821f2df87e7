"""Train the demo model that ships in llmopt/demo/model, from nothing but this Python.

    python scripts/train_demo_model.py --out llmopt/demo/model [--steps N] [--width 512]

A wider one is a second trained model for benchmarks.

Text, split and order come from llmopt.corpora.stdlib; calibration and evaluation modules are
never trained on. Hidden matrices are trained with Muon, everything else with AdamW. The learning
rate has fallen to 5% at three quarters of the run, so that the last quarter shows whether the
weights have settled: the curve in training.json is the evidence.
"""

from __future__ import annotations

import argparse
import json
import math
import platform
import time
from pathlib import Path

import numpy as np
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM

from llmopt.corpora import stdlib

END = "<|endoftext|>"
CONTEXT = 512
WARM_UP, ANNEAL, SETTLE = 99 / 2400, 1100 / 2400, 0.75  # as shares of all steps


def train_tokenizer(texts: list[str], size: int) -> Tokenizer:
    """Byte-level BPE with GPT-2's pre-tokenizer pattern; id 0 separates documents."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        special_tokens=[END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def pack(tokenizer: Tokenizer, texts: list[str]) -> np.ndarray:
    """Every document's ids, each followed by END, as one int16 array."""
    end = tokenizer.token_to_id(END)
    encoded = tokenizer.encode_batch(texts, add_special_tokens=False)
    return np.concatenate([np.asarray([*e.ids, end], dtype=np.int16) for e in encoded])


def windows(stream: np.ndarray, count: int) -> torch.Tensor:
    """The first `count` whole windows of CONTEXT + 1 tokens, [count, CONTEXT + 1] int64."""
    count = min(count, (len(stream) - 1) // CONTEXT)
    starts = np.arange(count)[:, None] * CONTEXT + np.arange(CONTEXT + 1)
    return torch.from_numpy(stream[starts].astype(np.int64))


def batches(stream: np.ndarray, batch: int, steps: int, seed: int):
    """Yield [batch, CONTEXT + 1] int64: whole passes over the stream, each at a new offset."""
    rng = np.random.default_rng(seed)
    queue: list[int] = []
    for _ in range(steps):
        if len(queue) < batch:
            starts = np.arange(rng.integers(CONTEXT), len(stream) - CONTEXT - 1, CONTEXT)
            rng.shuffle(starts)
            queue += starts.tolist()
        picked = np.asarray([queue.pop(0) for _ in range(batch)])
        yield torch.from_numpy(stream[picked[:, None] + np.arange(CONTEXT + 1)].astype(np.int64))


def nll(model: torch.nn.Module, tokens: torch.Tensor) -> torch.Tensor:
    """Mean negative log likelihood (nats per token) of tokens[:, 1:]."""
    logits = model(input_ids=tokens[:, :-1], use_cache=False).logits
    return torch.nn.functional.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten())


@torch.no_grad()
def bits_per_byte(model: torch.nn.Module, tokens: torch.Tensor, tokenizer: Tokenizer) -> float:
    model.eval()
    nats = sum(float(nll(model, chunk)) * chunk[:, 1:].numel() for chunk in tokens.split(8))
    size = sum(len(t.encode()) for t in tokenizer.decode_batch(tokens[:, 1:].tolist()))
    model.train()
    return nats / math.log(2) / size


def learning_rate(progress: float) -> float:
    """Share of the peak: warm-up, a slow cosine, then lines to 5% at three quarters and to zero."""

    def cosine(x: float) -> float:
        return 0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * (x - WARM_UP) / 0.99))

    if progress < WARM_UP:
        return progress / WARM_UP
    if progress <= ANNEAL:
        return cosine(progress)
    if progress <= SETTLE:
        return cosine(ANNEAL) + (0.05 - cosine(ANNEAL)) * (progress - ANNEAL) / (SETTLE - ANNEAL)
    return 0.05 * (1 - progress) / (1 - SETTLE)


def optimizers(model: torch.nn.Module) -> list[torch.optim.Optimizer]:
    hidden, rest = [], []
    for name, parameter in model.named_parameters():
        (hidden if parameter.ndim == 2 and "embed" not in name else rest).append(parameter)
    return [
        torch.optim.Muon(hidden, lr=5e-3, weight_decay=0.1, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(rest, lr=4e-3, betas=(0.9, 0.95), weight_decay=0.0),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=2400)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--layers", type=int, default=5)
    parser.add_argument("--width", type=int, default=256, help="a multiple of 256")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    torch.manual_seed(args.seed)
    args.out.mkdir(parents=True, exist_ok=True)

    train = [text for _, text in stdlib.documents("train", with_tests=True)]
    held_out = [text for _, text in stdlib.documents("evaluation")]
    tokenizer = train_tokenizer(train, 4096)
    stream = pack(tokenizer, train)
    evaluation = windows(pack(tokenizer, held_out), 96)
    save_tokenizer(tokenizer, args.out)

    config = LlamaConfig(
        vocab_size=4096, hidden_size=args.width, intermediate_size=2 * args.width,
        num_hidden_layers=args.layers, num_attention_heads=args.width // 64,
        num_key_value_heads=args.width // 128, head_dim=64,
        max_position_embeddings=CONTEXT, tie_word_embeddings=True,
        bos_token_id=0, eos_token_id=0, pad_token_id=None, rms_norm_eps=1e-5,
    )  # fmt: skip
    model = LlamaForCausalLM(config)
    compiled = torch.compile(model)
    pair = optimizers(model)
    peaks = [o.param_groups[0]["lr"] for o in pair]
    curve: list[dict[str, float]] = []
    started = time.time()
    every = max(args.steps // 29, 1)
    print(f"{len(stream)} training tokens, {sum(p.numel() for p in model.parameters())} weights")
    for step, batch in enumerate(batches(stream, args.batch, args.steps, args.seed)):
        for optimizer, peak in zip(pair, peaks, strict=True):
            optimizer.param_groups[0]["lr"] = peak * learning_rate((step + 1) / args.steps)
        loss = nll(compiled, batch)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer in pair:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        if (step + 1) % every == 0 or step + 1 == args.steps:
            value = bits_per_byte(model, evaluation, tokenizer)
            nats = float(loss.detach())
            curve.append({"step": step + 1, "train_nll": nats, "bits_per_byte": value})
            print(f"{step + 1} {loss:.4f} {value:.4f} {time.time() - started:.0f}s", flush=True)
            write_curve(args, curve, stream)
    model.to(torch.bfloat16)
    model.save_pretrained(args.out)


def save_tokenizer(tokenizer: Tokenizer, out: Path) -> None:
    tokenizer.save(str(out / "tokenizer.json"))
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast", "bos_token": END, "eos_token": END,
        "unk_token": END, "add_prefix_space": False, "clean_up_tokenization_spaces": False,
        "model_max_length": CONTEXT,
    }  # fmt: skip
    (out / "tokenizer_config.json").write_text(json.dumps(settings, indent=2) + "\n")


def write_curve(args: argparse.Namespace, curve: list, stream: np.ndarray) -> None:
    record = {
        "python": platform.python_version(), "torch": torch.__version__, "seed": args.seed,
        "steps": args.steps, "tokens_per_step": args.batch * CONTEXT,
        "training_tokens_distinct": len(stream), "curve": curve,
    }  # fmt: skip
    (args.out / "training.json").write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
