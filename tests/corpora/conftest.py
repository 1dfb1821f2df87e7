"""A tokenizer whose ids are the byte values, with or without a bos of its own."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers, processors

BOS, EOS = 256, 257


@pytest.fixture
def tokenizer_folder(tmp_path: Path) -> Callable[..., Path]:
    def write(*, template: bool = False, **config: object) -> Path:
        alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
        vocabulary = {letter: number for number, letter in enumerate(alphabet)}
        tokenizer = Tokenizer(models.BPE(vocabulary, []))
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        tokenizer.add_special_tokens(["<s>", "</s>"])
        if template:
            tokenizer.post_processor = processors.TemplateProcessing(
                single="<s> $A", special_tokens=[("<s>", BOS)]
            )
        tokenizer.enable_truncation(4)  # as files left over from training set-ups have it
        folder = tmp_path / "model"
        folder.mkdir()
        tokenizer.save(str(folder / "tokenizer.json"))
        settings = {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "bos_token": "<s>",
            "eos_token": {"__type": "AddedToken", "content": "</s>", "special": True},
            **config,
        }
        (folder / "tokenizer_config.json").write_text(json.dumps(settings))
        return folder

    return write
