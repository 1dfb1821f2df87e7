"""What CONTRIBUTING.md shows as added."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path


def shown(heading: str) -> Iterator[tuple[str, str]]:
    """(path, text) of each file that a section of CONTRIBUTING.md shows as added."""
    page = (Path(__file__).parents[1] / "CONTRIBUTING.md").read_text("utf-8")
    section = page.partition(f"## {heading}\n")[2].partition("\n## ")[0]
    for diff in re.findall(r"```diff\n(.*?)```", section, re.DOTALL):
        for part in re.split(r"^--- /dev/null\n", diff, flags=re.MULTILINE)[1:]:
            first, *lines = part.splitlines()
            text = "".join(f"{line[1:]}\n" for line in lines if line.startswith("+"))
            yield first.removeprefix("+++ b/"), text
