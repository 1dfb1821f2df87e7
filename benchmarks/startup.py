"""CPU time of `llmopt --help`, the bare interpreter's beside it.

    python benchmarks/startup.py [--runs 10]

User plus system time of a fresh process, so that a busy machine changes it little; the minimum is
the figure to compare. The first two runs, which write bytecode and fill the file cache, do not
count.
"""

from __future__ import annotations

import argparse
import statistics
import sys

from process import measure

COMMANDS = {
    "python -c pass": [sys.executable, "-c", "pass"],
    "llmopt --help": [sys.executable, "-m", "llmopt", "--help"],
    "llmopt plan demo": [sys.executable, "-m", "llmopt", "plan", "demo"],
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--runs", type=int, default=10)
    runs = parser.parse_args().runs
    print("| command | minimum, s CPU | median, s CPU |")
    print("|---|---|---|")
    for name, command in COMMANDS.items():
        for _ in range(2):
            measure(command)
        seconds = [measure(command).cpu_seconds for _ in range(runs)]
        print(f"| {name} | {min(seconds):.3f} | {statistics.median(seconds):.3f} |")


if __name__ == "__main__":
    main()
