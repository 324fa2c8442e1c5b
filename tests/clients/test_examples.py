"""The programs of docs/examples/clients that need packages of others."""

from __future__ import annotations

import subprocess
import sys
import wave

from support import QUESTION, ROOT, server


def test_the_example_with_openais_sdk(tmp_path):
    program = ROOT / "docs/examples/clients/openai_realtime.py"
    answer = tmp_path / "answer.wav"
    with server("--seed", "1") as (host, port):
        done = subprocess.run(
            [sys.executable, program, f"http://{host}:{port}/v1", QUESTION, answer],
            capture_output=True,
            text=True,
            timeout=120,
        )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip()
    with wave.open(str(answer)) as wav:
        assert wav.getframerate() == 24_000
        assert wav.getnframes() > 24_000 // 2
