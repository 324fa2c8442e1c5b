"""What a person at a terminal sees."""

from __future__ import annotations

import json
import os
import pty
import subprocess
import sys

from support import REPOSITORY

RUN = [sys.executable, "-m", "moshi_rs", "run", str(REPOSITORY / "tests" / "audio" / "hello.wav")]
RUN += ["--seed", "1", "--pad", "2"]
ERASE_LINE = "\r\x1b[2K"


def on_terminal(command: list[str]) -> list[str]:
    """Lines that are left on a terminal after a command that moves the cursor in no other way."""
    ours, theirs = pty.openpty()
    with subprocess.Popen(command, stdin=theirs, stdout=theirs, stderr=theirs) as process:
        os.close(theirs)
        received = b""
        while True:
            try:
                chunk = os.read(ours, 1 << 16)
            except OSError:  # how Linux says that the other side is closed
                break
            if not chunk:
                break
            received += chunk
        os.close(ours)
    assert process.returncode == 0
    lines = received.decode().split("\r\n")
    return [line.rsplit(ERASE_LINE, 1)[-1] for line in lines]


def test_the_text_stays_as_it_comes() -> None:
    done = subprocess.run([*RUN, "--json"], capture_output=True, check=True)
    said = json.loads(done.stdout)["text"].strip()
    assert len(said) > 5
    shown = on_terminal(RUN)
    assert said in (line.strip() for line in shown), shown
    assert any("real-time factor" in line for line in shown)
