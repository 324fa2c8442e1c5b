"""Writes the reference of the command line, from what ``--help`` prints.

Usage: ``python docs/tools/cli_reference.py docs/reference/cli.md``. A test compares the file with
what this script gives.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

HEAD = """\
# Command line

What `moshi-rs COMMAND --help` prints. The command of the Python package and the native binary \
have the same options.

<!-- Made by `make reference`; do not edit. -->
"""
COMMAND = re.compile(r"^  ([a-z-]+) {2,}", re.MULTILINE)


def help_of(*arguments: str) -> str:
    """The long help of a command, as wide as clap makes it for a wide terminal."""
    done = subprocess.run(
        [sys.executable, "-m", "moshi_rs", *arguments, "--help"],
        capture_output=True,
        check=True,
        encoding="utf-8",
        env=os.environ | {"COLUMNS": "100", "NO_COLOR": "1"},
        stdin=subprocess.DEVNULL,
        timeout=60,
    )
    return "\n".join(line.rstrip() for line in done.stdout.strip().splitlines())


def commands() -> list[str]:
    """Names of all commands, without ``help``."""
    listed = help_of().partition("\nCommands:\n")[2].partition("\n\n")[0]
    return [name for name in COMMAND.findall(listed) if name != "help"]


def page() -> str:
    """The page as Markdown."""
    sections = [((), "moshi-rs"), *(((name,), f"moshi-rs {name}") for name in commands())]
    texts = (f"## {title}\n\n```text\n{help_of(*name)}\n```\n" for name, title in sections)
    return "\n".join([HEAD, *texts])


if __name__ == "__main__":
    Path(sys.argv[1]).write_text(page(), encoding="utf-8")
