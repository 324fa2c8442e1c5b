"""``python -m moshi.client`` of PyPI talks with the server."""

from __future__ import annotations

import importlib.metadata
import json
import os
import subprocess
import sys
import wave
from pathlib import Path

import numpy as np

from support import QUESTION, Relay, one_is_in_time, server

HERE = Path(__file__).parent
SECONDS = 12
AFTERWARDS = 0.5  # as the shim has it
RATE = 24_000
BLOCK = 1920
BLOCKS_PER_SECOND = 12


def test_the_python_client_hears_and_shows_what_the_model_says(tmp_path):
    assert importlib.metadata.version("moshi") == "0.2.13"
    one_is_in_time(lambda: converse(tmp_path / "answer.wav"))


def converse(answer):
    with server("--seed", "1") as (host, port), Relay(host, port) as relay:
        environment = os.environ | {
            "PYTHONPATH": str(HERE / "shim"),
            "SHIM_INPUT": str(QUESTION),
            "SHIM_OUTPUT": str(answer),
            "SHIM_SECONDS": str(SECONDS),
        }
        address = ["--host", relay.host, "--port", str(relay.port)]
        done = subprocess.run(
            [sys.executable, str(HERE / "run_moshi_client.py"), *address],
            capture_output=True,
            env=environment,
            text=True,
            timeout=120,
        )
        [chat] = relay.chats()
        sent = chat.messages()
    print(done.stdout, done.stderr)
    assert done.returncode == 0
    assert sent[0] == bytes(9), "the handshake is first"

    with wave.open(str(answer)) as wav:
        seconds = wav.getnframes() / wav.getframerate()
        samples = np.frombuffer(wav.readframes(wav.getnframes()), np.int16) / 32768
    assert abs(seconds - SECONDS - AFTERWARDS) <= 0.5
    assert np.sqrt(np.mean(samples**2)) > 1e-3, "silence"

    text = b"".join(message[1:] for message in sent if message[0] == 2).decode()
    assert text.strip(), "the model says something"
    assert done.stdout == text

    # Every frame has its answer, or is counted as dropped; told once a second at most.
    dropped = max(json.loads(message[1:])["dropped_frames"] for message in sent if message[0] == 4)
    answered = sum(message[0] == 1 for message in sent)
    # In the last half second the microphone gives nothing.
    spoken = SECONDS * RATE / BLOCK
    assert abs(answered + dropped - spoken) <= (RATE / BLOCK if dropped else 6)

    blocks = samples[: len(samples) // BLOCK * BLOCK].reshape(-1, BLOCK)
    within = slice(BLOCKS_PER_SECOND, int(spoken))
    late = sum(not block.any() for block in blocks[within])
    return f"{dropped} frames dropped, {late} blocks of silence" if dropped or late else ""
