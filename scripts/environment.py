"""Create the environments that must stay apart from llmopt's own.

    python scripts/environment.py compat peer-gptqmodel

Each NAME is a file requirements/NAME.txt; the environment is .venvs/NAME. Where
requirements/NAME-after-install.py exists, it is run with the new environment's Python at the end.
An environment whose two files and Python version are unchanged is left as it is; anything else is
built anew.
"""

from __future__ import annotations

import argparse
import hashlib
import platform
import subprocess
import sys
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
REQUIREMENTS = ROOT / "requirements"
STAMP = ".ready"


def interpreter(environment: Path) -> Path:
    """The Python of an environment."""
    return environment / "bin" / "python"


def fingerprint(name: str) -> str:
    """SHA-256 of all that decides what the environment holds."""
    digest = hashlib.sha256(platform.python_version().encode())
    for path in (REQUIREMENTS / f"{name}.txt", _after_install(name)):
        digest.update(path.read_bytes() if path.is_file() else b"")
    return digest.hexdigest()


def build(name: str, folder: Path) -> Path:
    """Make folder/NAME ready, installing only where something changed; returns its Python."""
    environment = folder / name
    stamp, wanted = environment / STAMP, fingerprint(name)
    python = interpreter(environment)
    if stamp.is_file() and stamp.read_text() == wanted:
        print(f"{name}: ready")
        return python
    print(f"{name}: installing into {environment}")
    venv.create(environment, clear=True, with_pip=True)
    requirements = REQUIREMENTS / f"{name}.txt"
    pip = [python, "-m", "pip", "--disable-pip-version-check", "-q"]
    subprocess.run([*pip, "install", "-r", requirements], check=True)
    if _after_install(name).is_file():
        subprocess.run([python, _after_install(name)], check=True)
    stamp.write_text(wanted)
    return python


def _after_install(name: str) -> Path:
    return REQUIREMENTS / f"{name}-after-install.py"


def main() -> None:
    known = sorted(path.stem for path in REQUIREMENTS.glob("*.txt"))
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("names", nargs="+", metavar="NAME", choices=known, help=", ".join(known))
    parser.add_argument("--folder", type=Path, default=ROOT / ".venvs")
    arguments = parser.parse_args()
    try:
        for name in arguments.names:
            build(name, arguments.folder)
    except subprocess.CalledProcessError as error:
        sys.exit(f"{name} was not installed ({error}); requirements/README.md says what it needs")


if __name__ == "__main__":
    main()
