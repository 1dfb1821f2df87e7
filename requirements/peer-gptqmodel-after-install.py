"""Make GPTQModel 7.3.6 import in an environment without torchvision.

Run with that environment's own Python, once, after `pip install -r peer-gptqmodel.txt`
(scripts/environment.py does it). GPTQModel imports torchvision at start-up for one vision model,
InternVL, and nothing else; torchvision builds are tied to the CPU or CUDA build of torch, and a
stub package misleads transformers into thinking that torchvision is there. So the two imports are
replaced, in this environment's copy, by names that fail only where InternVL would use them.
Running it again changes nothing.
"""

from __future__ import annotations

from importlib.metadata import distribution
from pathlib import Path

FILE = "gptqmodel/models/definitions/internvl_chat.py"
REPLACEMENTS = {
    "import torchvision.transforms as T\n": "T = None\n",
    "from torchvision.transforms.functional import InterpolationMode\n": (
        "InterpolationMode = None\n"
    ),
}


def patched(source: str) -> str:
    """The module's text without torchvision; SystemExit where it is not the expected text."""
    for imported, replacement in REPLACEMENTS.items():
        if imported not in source and replacement not in source:
            raise SystemExit(f"{FILE}: expected the line {imported!r}; another GPTQModel version?")
        source = source.replace(imported, replacement)
    return source


if __name__ == "__main__":
    target = Path(str(distribution("gptqmodel").locate_file(FILE)))
    target.write_text(patched(target.read_text(encoding="utf-8")), encoding="utf-8")
