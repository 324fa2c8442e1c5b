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
def started(*options: str, drain: int = 1):
    """As ``server``, with the process, which a test may stop itself."""
    model = os.environ.get("MOSHI_RS_MODEL")
    if model:
        options = (*options, "--model", model)
    process = subprocess.Popen(
        [*command(), "serve", "--port", "0", "--drain", str(drain), *options],
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
class Carried:
    """One connection through a relay."""

    #: The first line of what the client asks for.
    request: str = ""
    #: What the server sent.
    data: bytearray = field(default_factory=bytearray)
    lost: bool = False

    def messages(self) -> list[bytes]:
        """Payloads of the server's binary messages, each in one frame as our server sends them."""
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


class Relay:
    """Carries connections to a server, keeps what the server sends, and can lose them unclosed."""

    def __init__(self, host: str, port: int) -> None:
        self.upstream = (host, port)
        self.connections: list[Carried] = []

    def __enter__(self):
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.host, self.port = self.listener.getsockname()
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(self, *_):
        self.listener.close()

    def chats(self) -> list[Carried]:
        """Conversations, in the order of their connections."""
        return [one for one in self.connections if one.request.startswith("GET /api/chat")]

    def lose(self) -> None:
        """From now on nothing goes through the connections that there are."""
        for connection in self.connections:
            connection.lost = True

    def _accept(self):
        with contextlib.suppress(OSError):
            while True:
                client, _ = self.listener.accept()
                server = socket.create_connection(self.upstream)
                connection = Carried()
                self.connections.append(connection)
                for end in client, server:
                    end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                for ends in (client, server), (server, client):
                    arguments = (*ends, connection, ends[0] is server)
                    threading.Thread(target=self._copy, args=arguments, daemon=True).start()

    def _copy(self, source, sink, connection, answers):
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                if answers:
                    connection.data += data
                elif not connection.request:
                    connection.request = data.split(b"\r\n")[0].decode()
                if not connection.lost:
                    sink.sendall(data)
        if not connection.lost:
            with contextlib.suppress(OSError):
                sink.shutdown(socket.SHUT_WR)
