"""An environment for each rival, below build/peers/envs, from the pinned files of requirements/.

    python -m benchmarks.peers.install [NAME …] [--python PYTHON]

One that was installed from the same file is left alone. One that cannot be installed leaves its log, whose last
error line becomes the rival's row; the others go on.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from benchmarks.peers.places import BUILD, HERE, digest, read_json, write_json
from benchmarks.peers.process import last_error

REQUIREMENTS = HERE / "requirements"
LIMIT_S = 3600


def environment(name: str, build: Path = BUILD) -> Path:
    """The folder of a rival's environment; its state is in NAME.json beside it."""
    return build / "envs" / name


def python(name: str, build: Path = BUILD) -> Path:
    """The interpreter of a rival's environment."""
    return environment(name, build) / "bin" / "python"


def problem(name: str, build: Path = BUILD) -> str | None:
    """Why the environment cannot be used, or None where it can."""
    state = read_json(environment(name, build).with_suffix(".json"))
    if state is None:
        return "not installed: make peers"
    return None if state["installed"] else f"cannot be installed: {state['error']}"


def main() -> int:
    """Install what is missing; exit code 0 also where a rival cannot be installed, which is its row."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    names = sorted(path.stem for path in REQUIREMENTS.glob("*.txt"))
    parser.add_argument("names", nargs="*", default=names, metavar="NAME", help=", ".join(names))
    parser.add_argument("--python", type=Path, default=Path(sys.executable), help="makes the environments")
    asked = parser.parse_args()
    for name in asked.names:
        print(f"{name}: {install(name, asked.python)}", flush=True)
    return 0


def install(name: str, base: Path, build: Path = BUILD, requirements: Path = REQUIREMENTS) -> str:
    """Make an environment from its pinned file; says how that went."""
    pinned = requirements / f"{name}.txt"
    folder = environment(name, build)
    state = folder.with_suffix(".json")
    known = read_json(state)
    if known and known["installed"] and known["requirements"] == digest(pinned):
        return "there already"
    state.unlink(missing_ok=True)
    shutil.rmtree(folder, ignore_errors=True)
    folder.parent.mkdir(parents=True, exist_ok=True)
    pip = [str(python(name, build)), "-m", "pip"]
    error = run(
        [
            [str(base), "-m", "venv", str(folder)],
            [
                *pip,
                "install",
                "--disable-pip-version-check",
                "--requirement",
                str(pinned),
            ],
        ],
        folder.with_suffix(".log"),
    )
    write_json(state, {"installed": error is None, "requirements": digest(pinned), "error": error})
    return "installed" if error is None else f"cannot be installed: {error}"


def run(commands: Sequence[Sequence[str]], log: Path) -> str | None:
    """Run commands until one fails; returns its last error line, or None."""
    with log.open("w") as file:
        for command in commands:
            try:
                done = subprocess.run(
                    command, stdout=file, stderr=subprocess.STDOUT, timeout=LIMIT_S, check=False
                )
            except subprocess.TimeoutExpired:
                return f"not done after {LIMIT_S} s"
            if done.returncode:
                return last_error(log.read_text(errors="replace")) or f"exit code {done.returncode}"
    return None


if __name__ == "__main__":
    sys.exit(main())
