"""A checkpoint that transformers quantizes with bitsandbytes on CPU, for others to read.

Runs inside the `peer-gptqmodel` environment:

    .venvs/peer-gptqmodel/bin/python scripts/foreign_loaders/bitsandbytes_quantize.py \\
        --model DIR --out DIR --kind nf4-double
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from transformers import AutoModelForCausalLM, BitsAndBytesConfig

NF4: dict[str, Any] = {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}
KINDS: dict[str, dict[str, Any]] = {
    "nf4": NF4,
    "nf4-double": {**NF4, "bnb_4bit_use_double_quant": True},
    "int8": {"load_in_8bit": True},
}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", type=Path, required=True, help="folder with a plain checkpoint")
    parser.add_argument("--out", type=Path, required=True, help="folder to write")
    parser.add_argument("--kind", choices=KINDS, required=True)
    arguments = parser.parse_args()
    config = BitsAndBytesConfig(**KINDS[arguments.kind])
    model = AutoModelForCausalLM.from_pretrained(arguments.model, quantization_config=config)
    model.save_pretrained(arguments.out)


if __name__ == "__main__":
    main()
