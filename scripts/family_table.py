"""Tries every decoder type and writes docs/families.md: what works for each, and what does not.

    python scripts/family_table.py [TYPE...]

What is tried is in tests/families/works.py, and the slow suite tries it again for each row. With
types, the others keep their rows.
"""

from __future__ import annotations

import argparse
import json
import re
import tempfile
from dataclasses import dataclass
from pathlib import Path

import torch
import transformers

from llmopt.formats.gguf.families import GGUF_FAMILIES
from llmopt.specs import families
from scripts.tiny_models import types
from tests.families import works

ROOT = Path(__file__).parents[1]
PATH = ROOT / "docs" / "families.md"
_README = ROOT / "README.md"
_CLOSE = 1e-4
_TRIED = ("rtn", "gptq", "awq")
_HEADER = """\
# Model types

What transformers {version} can load as a causal decoder, and what was tried with a tiny random
model of each type, saved by `save_pretrained`: rounding to int8 in compressed-tensors (`rtn`), int4
by error feedback in gptq (`gptq`), both decoded again and loaded in transformers, whose logits must
be those of our runtime to 1e-4; and scales folded into norms and linears that leave the logits as
they are (`awq`). `share` is how much of the weights of the tiny model's blocks is in linears that
are quantized; the rest is named. `gguf`: llama.cpp runs what `convert --to gguf` writes.

A type that is not here is looked at when a config names it: a tiny model of it runs once, in a
process of its own, without code that comes with a checkpoint. `scripts/family_table.py` writes this
page.

| type | share | rtn | gptq | awq | gguf | besides |
|---|---|---|---|---|---|---|
"""
_OTHERS = "\n## Types that cannot be quantized\n\n"


@dataclass(frozen=True)
class Row:
    """One type: what works of `_TRIED`, and what is in no linear."""

    type: str
    share: float
    works: tuple[str, ...]
    rest: str

    def line(self) -> str:
        """In the table."""
        marks = " | ".join("yes" if name in self.works else "" for name in _TRIED)
        gguf = "yes" if self.type in GGUF_FAMILIES else ""
        return f"| {self.type} | {self.share:.1%} | {marks} | {gguf} | {self.rest} |"


def rows_in(page: str) -> list[Row]:
    """The rows of the page."""
    found = []
    for cells in re.findall(r"^\| (\S+) \| ([\d.]+)% \|(.*)\|$", page, re.MULTILINE):
        *marks, _, rest = (cell.strip() for cell in cells[2].split("|"))
        done = tuple(n for n, mark in zip(_TRIED, marks, strict=True) if mark)
        found.append(Row(cells[0], float(cells[1]) / 100, done, rest))
    return found


def tried(model_type: str) -> Row:
    """Try one type; raises what keeps it from being read at all."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        works.save(model_type, folder / "model")
        (share, rest), distance = works.share(folder / "model"), works.loads(folder / "model")
        if not distance < _CLOSE:
            raise ValueError(f"logits differ by {distance:.2g} of their spread")
        done = []
        for each in _TRIED:
            try:
                if getattr(works, each)(folder / "model", folder) < _CLOSE:
                    done.append(each)
            except Exception as error:
                print(f"  {model_type}, {each}: {type(error).__name__}: {error}", flush=True)
    return Row(model_type, share, tuple(done), rest)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("types", nargs="*")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    transformers.utils.logging.disable_progress_bar()
    transformers.utils.logging.set_verbosity_error()
    rows = {row.type: row for row in rows_in(PATH.read_text("utf-8"))} if arguments.types else {}
    reasons: dict[str, str] = dict(json.loads(families.DATA.read_text("utf-8"))["others"])
    for model_type in arguments.types or [t for t in types() if t in families.FAMILIES]:
        rows.pop(model_type, None)
        try:
            rows[model_type] = tried(model_type)
            print(rows[model_type].line(), flush=True)
        except Exception as error:
            reasons[model_type] = " ".join(f"{type(error).__name__}: {error}".split())[:300]
            print(f"{model_type}: {reasons[model_type]}", flush=True)
    page = _HEADER.format(version=transformers.__version__)
    page += "".join(f"{rows[key].line()}\n" for key in sorted(rows)) + _OTHERS
    page += "".join(f"- `{key}`: {reasons[key]}\n" for key in sorted(reasons) if key in types())
    PATH.write_text(page, encoding="utf-8")
    _write_readme(list(rows.values()))


def _write_readme(rows: list[Row]) -> None:
    """The line of the table in README that counts them."""
    counts = [sum(name in row.works for row in rows) for name in _TRIED]
    line = (
        f"| model types | {len(rows)} of transformers' {len(types())} causal ones: {counts[1]} with"
        f" calibration, {counts[0]} without, {counts[2]} with `awq`, {len(GGUF_FAMILIES)} to GGUF"
        " ([which](docs/families.md)); others are looked at when a config names them |"
    )
    text = _README.read_text("utf-8")
    _README.write_text(re.sub(r"^\| (families|model types) \|.*\|$", line, text, flags=re.M))


if __name__ == "__main__":
    main()
