"""A server as people start it, and a witness of what it sends.

MOSHI_RS is the program to test, MOSHI_RS_MODEL a model in place of the one in the box, where the
machine is too busy for that one.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
QUESTION = ROOT / "tests/audio/box_joke.wav"
# Other programs may take the machine's time for a moment, not in three conversations out of three.
TRIES = 3


def command() -> list[str]:
    """The program under test: MOSHI_RS, else the one on the path."""
    program = os.environ.get("MOSHI_RS") or shutil.which("moshi-rs")
    assert program, "set MOSHI_RS to the program moshi-rs"
    return [program]


def one_is_in_time(converse):
    """Holds conversations until one has no lag after its first second.

    ``converse`` judges everything else itself and gives a description of the lag, empty without.
    """
    lags = []
    while len(lags) < TRIES:
        lag = converse()
        if not lag:
            return
        print("lag:", lag)
        lags.append(lag)
    raise AssertionError(f"every conversation lagged after its first second: {lags}")


@contextlib.contextmanager
def server(*options: str):
    """Starts ``moshi-rs serve`` on a free port and gives host and port; it must end with 0."""
    with started(*options) as (_, host, port):
        yield host, port


@contextlib.contextmanager
def started(*options: str):
    """As ``server``, with the process."""
    model = os.environ.get("MOSHI_RS_MODEL")
    if model:
        options = (*options, "--model", model)
    process = subprocess.Popen(
        [*command(), "serve", "--port", "0", "--drain", "1", *options],
        stdout=subprocess.PIPE,
        stderr=sys.stderr,
        text=True,
    )
    try:
        line = process.stdout.readline()
        found = re.search(r"https?://([\d.]+):(\d+)", line)
        assert found, f"no address in {line!r}"
        yield process, found[1], int(found[2])
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=20) == 0
    finally:
        process.kill()
        process.wait()


@dataclass
class Witness:
    """A relay that keeps what the server sends: WebSocket messages of one connection."""

    host: str
    port: int
    data: bytearray = field(default_factory=bytearray)

    def __enter__(self):
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.address = self.listener.getsockname()
        threading.Thread(target=self._relay, daemon=True).start()
        return self

    def __exit__(self, *_):
        self.listener.close()

    def _relay(self):
        client, _ = self.listener.accept()
        upstream = socket.create_connection((self.host, self.port))
        for end in client, upstream:
            end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        threading.Thread(target=self._copy, args=(client, upstream, False), daemon=True).start()
        self._copy(upstream, client, True)

    def _copy(self, source, sink, keep):
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                if keep:
                    self.data += data
                sink.sendall(data)
        with contextlib.suppress(OSError):
            sink.shutdown(socket.SHUT_WR)

    def messages(self) -> list[bytes]:
        """Payloads of the binary messages, each in one frame as our server sends them."""
        _, _, rest = bytes(self.data).partition(b"\r\n\r\n")
        found = []
        while len(rest) >= 2:
            size, at = rest[1] & 0x7F, 2
            if size == 126:
                size, at = int.from_bytes(rest[2:4], "big"), 4
            elif size == 127:
                size, at = int.from_bytes(rest[2:10], "big"), 10
            if len(rest) < at + size:
                break
            if rest[0] == 0x82:
                found.append(rest[at : at + size])
            rest = rest[at + size :]
        return found
