"""``moshi-rs client`` through devices: a fake ``sounddevice``, and a server of the test."""

from __future__ import annotations

import contextlib
import json
import sys
import threading
import time
import wave
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from fake_sounddevice import FakeSounddevice
from moshi_rs import _duplex, cli, client
from support import Array

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from websockets.sync.server import ServerConnection

server = pytest.importorskip("websockets.sync.server")

FRAMES = 6
FRAME = 1_920
METADATA = {"seed": "7", "resume_token": "t", "lag_ms": 0, "dropped_frames": 0}


@pytest.fixture(autouse=True)
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is dropped, however slow the machine is that runs the tests."""
    monkeypatch.setattr(_duplex, "MAX_WAITING_FRAMES", 10_000)


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> FakeSounddevice:
    module = FakeSounddevice((np.arange(FRAMES * FRAME) % 97 / 200).astype(np.float32))
    monkeypatch.setitem(sys.modules, "sounddevice", module)
    # What is said before the server listens is lost; here the microphone waits for it.
    ready = threading.Event()
    hear = client.RemoteDuplex.hear

    def patient_hear(duplex: client.RemoteDuplex, samples: Array) -> None:
        deadline = time.monotonic() + 60
        while not duplex._ready and not duplex.wait(0.0) and time.monotonic() < deadline:
            ready.wait(0.01)
        hear(duplex, samples)

    monkeypatch.setattr(client.RemoteDuplex, "hear", patient_hear)
    return module


@contextlib.contextmanager
def serving(handler: Callable[[ServerConnection], None]) -> Iterator[str]:
    with server.serve(handler, "127.0.0.1", 0, compression=None) as running:
        thread = threading.Thread(target=running.serve_forever)
        thread.start()
        try:
            yield f"ws://127.0.0.1:{running.socket.getsockname()[1]}"
        finally:
            running.shutdown()
            thread.join()


def listening(socket: ServerConnection, **metadata: object) -> None:
    socket.send(bytes(9))
    socket.send(b"\x04" + json.dumps(METADATA | metadata).encode())


def test_devices_talk_with_a_server(
    fake: FakeSounddevice, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    seen: dict[str, Any] = {"audio": b""}
    answered = threading.Event()

    def handler(socket: ServerConnection) -> None:
        assert socket.request is not None
        seen["path"] = socket.request.path
        seen["key"] = socket.request.headers["Authorization"]
        listening(socket)
        for number in range(FRAMES):
            message = socket.recv()
            assert isinstance(message, bytes)
            seen["audio"] += message[1:]
            half = np.frombuffer(message[1:], "<i2") // 2
            socket.send(b"\x01" + half.astype("<i2").tobytes())
            socket.send(b"\x02" + f" w{number}".encode())
        socket.send(b"\x05soon over")
        answered.set()

    fake.at_end = lambda: answered.wait(60)
    keys = tmp_path / "keys"
    keys.write_text("# mine\nthe key\n")
    path = tmp_path / "talk.wav"
    with serving(handler) as url:
        options = ["--api-key-file", str(keys), "--seed", "7", "--record", str(path)]
        assert cli.main(["client", url, *options]) == 0
    assert seen["path"] == "/api/chat?audio=pcm16&seed=7"
    assert seen["key"] == "Bearer the key"
    heard = np.frombuffer(seen["audio"], "<i2") / 32_768
    np.testing.assert_allclose(heard, fake.recording, atol=1e-4)
    captured = capfd.readouterr()
    assert captured.out == " w0 w1 w2 w3 w4 w5\n"
    assert f"{FRAMES} frames; round trip p50" in captured.err
    assert "late frames" in captured.err
    assert "the server says: soon over" in captured.err
    assert "seed 7" in captured.err
    with wave.open(str(path)) as file:
        pcm = np.frombuffer(file.readframes(file.getnframes()), "<i2").reshape(-1, 2) / 32_768
    assert len(pcm) == FRAMES * FRAME
    np.testing.assert_allclose(pcm[:, 1], fake.recording / 2, atol=1e-3)


def test_what_the_server_drops_is_counted(
    fake: FakeSounddevice, capfd: pytest.CaptureFixture[str]
) -> None:
    done = threading.Event()

    def handler(socket: ServerConnection) -> None:
        listening(socket)
        for _ in range(FRAMES):
            message = socket.recv()
        socket.send(b"\x04" + json.dumps(METADATA | {"dropped_frames": 5}).encode())
        assert isinstance(message, bytes)
        socket.send(message)
        done.set()

    fake.at_end = lambda: done.wait(60)
    with serving(handler) as url:
        assert cli.main(["client", url]) == 0
    captured = capfd.readouterr()
    assert "1 frames; round trip" in captured.err
    assert "dropped 5 in" in captured.err


@pytest.mark.usefixtures("fake")
@pytest.mark.parametrize(
    ("code", "exit_code", "message"), [(1013, 4, "full"), (1008, 5, "unknown token")]
)
def test_refusals_have_their_codes(
    code: int, exit_code: int, message: str, capfd: pytest.CaptureFixture[str]
) -> None:
    with serving(lambda socket: socket.close(code, message)) as url:
        assert cli.main(["client", url]) == exit_code
    captured = capfd.readouterr()
    assert f"error: the server refuses with code {code}: {message}" in captured.err
    assert "Traceback" not in captured.err


def test_a_server_that_closes_says_why(
    fake: FakeSounddevice, capfd: pytest.CaptureFixture[str]
) -> None:
    fake.at_end = lambda: True

    def handler(socket: ServerConnection) -> None:
        listening(socket)
        socket.recv()
        socket.close(1011, "internal error")

    with serving(handler) as url:
        assert cli.main(["client", url]) == 5
    assert "the conversation is over with code 1011: internal error" in capfd.readouterr().err


@pytest.mark.usefixtures("fake")
@pytest.mark.parametrize(
    ("options", "code", "message"),
    [
        (["ws://127.0.0.1:1"], 5, "cannot be reached"),
        (["ws://127.0.0.1:1", "--input-device", "piano"], 4, "--input-device piano"),
        (["ws://127.0.0.1:1", "--api-key-file", "none"], 5, "--api-key-file none"),
        (["ws://127.0.0.1:1", "--ca-file", "none"], 5, "--ca-file none"),
        ([], 2, "required"),
        (["ws://127.0.0.1:1", "--sing"], 2, "--sing"),
    ],
    ids=str,
)
def test_other_failures_have_their_codes(
    options: list[str], code: int, message: str, capfd: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["client", *options]) == code
    captured = capfd.readouterr()
    assert message in captured.err
    assert "Traceback" not in captured.err


def test_devices_are_listed(fake: FakeSounddevice, capfd: pytest.CaptureFixture[str]) -> None:
    assert fake.devices
    assert cli.main(["client", "--list-devices"]) == 0
    assert "1 Loud Speaker" in capfd.readouterr().out


def test_recordings_are_the_native_commands() -> None:
    for arguments, expected in [
        (["client", "ws://h:1"], True),
        (["-v", "client", "ws://h:1", "--record", "a.wav"], True),
        (["client", "ws://h:1", "--in", "a.wav"], False),
        (["client", "ws://h:1", "--in=a.wav"], False),
        (["client", "ws://h:1", "--out", "a.wav"], False),
        (["client", "ws://h:1", "-v"], True),
        (["client", "--help"], False),
        (["info", "client"], False),
    ]:
        assert client.is_for_devices(arguments) is expected, arguments
