"""The model's tokenizer through transformers, for what tokenizer.json alone cannot do."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from llmopt.errors import RequestError


def auto_tokenizer(folder: Path) -> Any:
    """AutoTokenizer of a local folder; runs no code from it and asks no network."""
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError, TypeError, ImportError) as error:
        raise RequestError(
            f"{folder}: no tokenizer that can be read",
            hint="copy tokenizer.json and tokenizer_config.json beside the weights",
        ) from error
