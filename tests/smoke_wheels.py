"""Installs the wheel of a folder into a fresh environment per interpreter and smoke-tests it.

Without interpreters, every regular one from Python 3.10 on is taken that is on PATH or in pyenv.
Free-threaded ones need a wheel of their own and are tested when they are named.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

TESTS = Path(__file__).resolve().parent
OLDEST, NEWEST = 10, 30
DESCRIBE = (
    "import json, sys, sysconfig; print(json.dumps([sys.executable, list(sys.version_info[:2]), "
    "bool(sysconfig.get_config_var('Py_GIL_DISABLED'))]))"
)


def run(*command: str | Path, cwd: Path | None = None) -> None:
    """Runs a command whose output the reader wants to see; ends the process if it fails."""
    print("+", *command, flush=True)
    done = subprocess.run(command, cwd=cwd)
    if done.returncode != 0:
        sys.exit(f"error: exit code {done.returncode}")


def discovered() -> list[str]:
    """Regular interpreters of this machine, one for each minor version, oldest first."""
    names = [f"python3.{minor}" for minor in range(OLDEST, NEWEST)] + ["python3", "python"]
    pyenv = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv")) / "versions"
    candidates = [shutil.which(name) for name in names]
    candidates += [str(python) for python in sorted(pyenv.glob("*/bin/python"))]
    found: dict[int, str] = {}
    for candidate in filter(None, candidates):
        done = subprocess.run([candidate, "-c", DESCRIBE], capture_output=True, text=True)
        # A shim of pyenv fails where its version is not selected; the glob finds that one.
        if done.returncode != 0:
            continue
        executable, (major, minor), free_threaded = json.loads(done.stdout)
        if major == 3 and minor >= OLDEST and not free_threaded:
            found.setdefault(minor, executable)
    return [found[minor] for minor in sorted(found)]


def smoke(python: str, wheels: Path) -> None:
    """Fresh environment, wheel, NumPy, smoke test, all outside the repository."""
    with tempfile.TemporaryDirectory() as scratch:
        environment = Path(scratch) / "venv"
        run(python, "-m", "venv", environment)
        inside = environment / ("Scripts" if os.name == "nt" else "bin") / "python"
        pip: list[str | Path] = [inside, "-m", "pip", "install", "--quiet"]
        pip += ["--disable-pip-version-check", "--only-binary", ":all:"]
        # No index: a package of the same name on one must never be what is tested.
        run(*pip, "--no-index", "--no-deps", "--find-links", wheels, "moshi-rs")
        run(*pip, "numpy")
        model = TESTS / "golden" / "dialogue_repo"
        recording = TESTS / "audio" / "hello.wav"
        script = TESTS / "smoke.py"
        run(inside, "-I", "-W", "error", script, model, recording, cwd=Path(scratch))


def main() -> None:
    """Tests every interpreter; the first failure ends the process."""
    parser = argparse.ArgumentParser(description="Smoke-test wheels in fresh environments.")
    parser.add_argument("wheels", type=Path, help="a folder with a wheel for each interpreter")
    parser.add_argument("pythons", nargs="*", help="interpreters; none takes those found")
    arguments = parser.parse_args()
    pythons = arguments.pythons or discovered()
    if not pythons:
        sys.exit("error: no Python 3.10 or newer found; name interpreters in PYTHONS")
    for python in pythons:
        smoke(python, arguments.wheels.resolve())
    print(f"{len(pythons)} passed, 0 failed")


if __name__ == "__main__":
    main()
