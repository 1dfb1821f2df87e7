"""Kill `llmopt quantize` at random moments, resume it, and compare with an undisturbed run.

    python benchmarks/kill_resume.py [--kills 10] [--gate default] [--max-memory 1GiB]

Each round starts the command, sends SIGKILL after a random share of the undisturbed run's time,
and runs the same command again to its end. Every file but llmopt.run.json (times, machine) must
have the same SHA-256 as the undisturbed run's, the manifest with what a gate measured among them,
and the folder around the result must hold nothing else. Exits with 1 where a round differs.
"""

from __future__ import annotations

import argparse
import hashlib
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from llmopt.artifact import RUN_RECORD


def command(arguments: argparse.Namespace, out: Path) -> list[str]:
    limit = ["--max-memory", arguments.max_memory] if arguments.max_memory else []
    return [
        sys.executable, "-m", "llmopt", "quantize", arguments.model, "-o", str(out),
        "--calibration", "demo", "--sequences", str(arguments.sequences),
        "--length", str(arguments.length), "--gate", arguments.gate,
        "--windows", str(arguments.windows), *limit, "--quiet",
    ]  # fmt: skip


def digests(folder: Path) -> dict[str, str]:
    """SHA-256 of every file of the artifact but the run record."""
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != RUN_RECORD
    }


def killed(call: list[str], after: float) -> bool:
    """Run the command for `after` seconds, then SIGKILL. False where it was done before."""
    process = subprocess.Popen(call, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        process.wait(after)
        return False
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGKILL)
        process.wait()
        return True


def stray(folder: Path) -> list[str]:
    """What stands beside the artifact `out`: it should be nothing."""
    return sorted(path.name for path in folder.iterdir() if path.name != "out")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--model", default="demo")
    parser.add_argument("--sequences", type=int, default=32)
    parser.add_argument("--length", type=int, default=256)
    parser.add_argument("--gate", default="none", help="default, or one in words")
    parser.add_argument("--windows", type=int, default=16, help="for the gate")
    parser.add_argument("--max-memory")
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    arguments = parser.parse_args()
    moments, failures = random.Random(arguments.seed), 0
    with tempfile.TemporaryDirectory() as scratch:
        reference = Path(scratch) / "reference" / "out"  # the name is in the manifest
        reference.parent.mkdir()
        started = time.perf_counter()
        subprocess.run(command(arguments, reference), check=True, stdout=subprocess.DEVNULL)
        whole = time.perf_counter() - started
        expected = digests(reference)
        print(f"undisturbed: {whole:.1f} s, {len(expected)} files compared")
        for number in range(1, arguments.kills + 1):
            folder = Path(scratch) / f"round-{number}"
            folder.mkdir()
            call = command(arguments, folder / "out")
            moment = moments.uniform(0.02, 0.98) * whole
            was_killed = killed(call, moment)
            subprocess.run(call, check=True, stdout=subprocess.DEVNULL)
            same, left = digests(folder / "out") == expected, stray(folder)
            failures += not same or bool(left)
            print(
                f"{number}: {'killed' if was_killed else 'had ended'} at {moment:.1f} s: "
                f"{'identical' if same else 'DIFFERENT'}, stray: {', '.join(left) or 'none'}",
                flush=True,
            )
    sys.exit(1 if failures else 0)


if __name__ == "__main__":
    main()
