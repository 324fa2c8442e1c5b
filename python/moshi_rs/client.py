"""``moshi-rs client URL`` without ``--in``: talk with a server through microphone and loudspeaker.

The devices are those of ``moshi-rs chat``, the connection that of :mod:`moshi_rs.aio`. With
``--in`` the native command speaks a recording instead and needs neither.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import ssl
import time
from collections import deque
from pathlib import Path
from typing import TYPE_CHECKING, Any

from moshi_rs import aio, chat
from moshi_rs._duplex import Duplex, Report
from moshi_rs.errors import ConfigError, InputError, MoshiError, SessionError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from moshi_rs._duplex import _Pcm

__all__ = ["RemoteDuplex", "is_for_devices", "run"]

_FRAME_SAMPLES = 1_920
_FRAME_MS = 80.0
_KEY_VARIABLE = "MOSHI_RS_API_KEY"
# Options that only the native command has, which says what is wrong with them.
_OF_RECORDINGS = {"--in", "--out", "--pad", "--json", "--help", "-h"}
# Time for the server's half of the goodbye, and for what it still had to say before it.
_GOODBYE_S = 5.0


def is_for_devices(arguments: Sequence[str]) -> bool:
    """Whether a command line is that of this module: ``client``, and no recording to speak.

    Args:
        arguments: Without the program name.
    """
    words = [word for word in arguments if not word.startswith("-")]
    options = {word.split("=")[0] for word in arguments if word.startswith("-")}
    return words[:1] == ["client"] and not options & _OF_RECORDINGS


def run(arguments: Sequence[str]) -> int:
    """Holds the conversation until Ctrl-C or until the server ends it, or lists the devices.

    Args:
        arguments: Behind the word ``client``.

    Returns:
        The exit code, as of ``moshi_rs.chat.run``.
    """
    try:
        options = vars(_parser().parse_args(arguments))
    except SystemExit as stopped:
        return int(stopped.code or 0)
    if options["list_devices"]:
        return chat.with_devices(None)
    return chat.with_devices(lambda sounddevice: _talk(sounddevice, options))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="moshi-rs client",
        description="Talk with a server through microphone and loudspeaker.",
        epilog="With --in FILE it speaks a recording instead: moshi-rs client --help.",
        add_help=False,
    )
    target = parser.add_mutually_exclusive_group(required=True)
    target.add_argument("url", nargs="?", help="server, as ws://host:8998 or wss://host:8998")
    target.add_argument("--list-devices", action="store_true")
    parser.add_argument("--api-key-file", type=Path, metavar="FILE")
    parser.add_argument("--ca-file", type=Path, metavar="FILE")
    parser.add_argument("--input-device", metavar="DEVICE")
    parser.add_argument("--output-device", metavar="DEVICE")
    parser.add_argument("--record", type=Path, metavar="FILE")
    parser.add_argument("--seed", type=int)
    parser.add_argument("-v", "--verbose", action="count", default=0)
    return parser


def _talk(sounddevice: Any, options: dict[str, Any]) -> None:  # noqa: ANN401
    chosen = chat.choose(sounddevice, options)
    key = _key(options["api_key_file"])
    context = _trusting(options["ca_file"])

    async def connect() -> aio.Connection:
        return await aio.connect(options["url"], api_key=key, seed=options["seed"], ssl=context)

    made: list[RemoteDuplex] = []

    def duplex(tap: Callable[[_Pcm, _Pcm], None] | None) -> RemoteDuplex:
        made.append(RemoteDuplex(connect, tap))
        return made[0]

    def summary(report: Report) -> str:
        return _summary(report, made[0], options["record"])

    chat.hold(sounddevice, chosen, duplex, _FRAME_MS, options["record"], summary)


def _key(path: Path | None) -> str | None:
    if path is None:
        return os.environ.get(_KEY_VARIABLE) or None
    try:
        lines = [line.strip() for line in path.read_text().splitlines()]
    except OSError as error:
        reason = f"--api-key-file {path}: {error}"
        raise InputError(reason) from error
    keys = [line for line in lines if line and not line.startswith("#")]
    if not keys:
        reason = f"--api-key-file {path} holds no key"
        raise InputError(reason)
    return keys[0]


def _trusting(path: Path | None) -> ssl.SSLContext | None:
    if path is None:
        return None
    try:
        return ssl.create_default_context(cafile=path)
    except OSError as error:
        reason = f"--ca-file {path}: {error}"
        raise InputError(reason) from error


class RemoteDuplex(Duplex):
    """A conversation whose model is on a server.

    The report's ``step_ms`` is the round trip of the last frames, ``dropped_input`` counts what the
    server dropped as well.

    Args:
        connect: Opens the connection, in the thread of this conversation.
        tap: As of ``Duplex``.
    """

    def __init__(
        self,
        connect: Callable[[], Awaitable[aio.Connection]],
        tap: Callable[[_Pcm, _Pcm], None] | None = None,
    ) -> None:
        super().__init__(None, _FRAME_SAMPLES, tap)
        self._connect = connect
        self._ready = False
        # Frames without an answer, and when they were sent. Of this conversation's thread alone.
        self._pending: deque[tuple[_Pcm, float]] = deque()
        self._server_dropped = 0
        self.round_trips_ms: list[float] = []
        """Round trip of every frame."""
        self.metadata: dict[str, Any] = {}
        """The newest metadata of the server."""
        self.notices: list[str] = []
        """What the server told its users."""

    @property
    def late_frames(self) -> int:
        """Frames whose answer took longer than a frame's time."""
        return sum(ms > _FRAME_MS for ms in self.round_trips_ms)

    def hear(self, samples: _Pcm) -> None:
        """As of ``Duplex``; what is said before the server listens is lost on purpose."""
        if self._ready:
            super().hear(samples)

    def _work(self) -> None:
        try:
            asyncio.run(self._converse())
        except MoshiError as error:
            self._failure = error
        except (OSError, EOFError) as error:
            self._failure = InputError(f"the server cannot be reached: {error}")
        except ImportError as error:
            self._failure = ConfigError(str(error))
        except BaseException as error:
            # Raised by join, in the thread that waits.
            self._failure = error
        finally:
            self._done.set()

    async def _converse(self) -> None:
        call = await self._connect()
        listening = asyncio.create_task(self._listen(call))
        sending = asyncio.create_task(self._send(call))
        try:
            self._ready = True
            await asyncio.wait({listening, sending}, return_when=asyncio.FIRST_COMPLETED)
            # Wakes the thread that waits for a frame.
            self.end()
            if not listening.done():
                # The server says what it had to say, then goodbye.
                with contextlib.suppress(asyncio.TimeoutError):
                    await asyncio.wait_for(call.close(), _GOODBYE_S)
            await asyncio.gather(listening, sending)
        finally:
            self._ready = False
            await call.close()

    async def _send(self, call: aio.Connection) -> None:
        while (frame := await asyncio.to_thread(self._next)) is not None:
            self._pending.append((frame, time.perf_counter()))
            try:
                await call.send(frame)
            except SessionError:
                # Who listens is told too, and tells it.
                return

    async def _listen(self, call: aio.Connection) -> None:
        async for event in call:
            self._take(event)

    def _take(self, event: aio.Event) -> None:
        if isinstance(event, aio.Audio):
            now = time.perf_counter()
            if self._pending:
                frame, sent = self._pending.popleft()
            else:
                frame, sent = event.pcm * 0, now
            self.round_trips_ms.append(1e3 * (now - sent))
            self._spoke(frame, event.pcm, "", self.round_trips_ms[-1])
            if self._tap is not None and len(frame) == len(event.pcm):
                self._tap(frame, event.pcm)
        elif isinstance(event, aio.Text):
            with self._changed:
                self._text += event.text
        elif isinstance(event, aio.Metadata):
            self.metadata = event.values
            dropped = int(event.values.get("dropped_frames", 0))
            # The oldest go first; they have no answer.
            for _ in range(min(dropped - self._server_dropped, len(self._pending))):
                self._pending.popleft()
            with self._changed:
                self._count(dropped_input=dropped - self._server_dropped)
            self._server_dropped = dropped
        else:
            self.notices.append(event.text)


def _summary(report: Report, duplex: RemoteDuplex, record: Path | None) -> str:
    times = sorted(duplex.round_trips_ms)
    p50, p95, p99 = (_percentile(times, share) for share in (0.5, 0.95, 0.99))
    lines = [
        f"{report.frames} frames; round trip p50 {p50:.1f} ms, p95 {p95:.1f} ms, p99 {p99:.1f} ms; "
        f"{duplex.late_frames} late frames",
        f"dropped {report.dropped_input} in {report.dropped_output} out; gaps {report.gaps}; "
        f"lag {duplex.metadata.get('lag_ms', 0)} ms",
    ]
    lines += [f"the server says: {notice}" for notice in duplex.notices]
    if "seed" in duplex.metadata:
        lines.append(f"seed {duplex.metadata['seed']}")
    if record is not None:
        lines.append(f"conversation written to {record}")
    return "\n".join(lines)


def _percentile(times: list[float], share: float) -> float:
    """Nearest rank; 0 without times."""
    if not times:
        return 0.0
    rank = -(-len(times) * round(share * 100) // 100)
    return times[max(int(rank) - 1, 0)]
