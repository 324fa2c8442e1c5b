"""A conversation with ``moshi-rs serve`` from asyncio.

Needs the package ``websockets``: ``pip install "moshi-rs[client]"``. Audio travels as samples of
16 bits, so no codec is needed here.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from urllib.parse import urlencode, urlsplit, urlunsplit

import numpy as np

from moshi_rs import errors

if TYPE_CHECKING:
    import ssl
    from collections.abc import AsyncIterator
    from types import TracebackType

    import numpy.typing as npt
    from websockets.asyncio.client import ClientConnection
    from websockets.exceptions import ConnectionClosed, InvalidStatus

__all__ = ["Audio", "Connection", "Metadata", "Notice", "Text", "connect"]

_HANDSHAKE, _AUDIO, _TEXT, _METADATA, _ERROR = 0, 1, 2, 4, 5
# Codes of WebSocket.
_NORMAL, _BROKEN, _FULL = 1000, 1006, 1013


@dataclass(frozen=True)
class Audio:
    """The model's audio of one frame.

    Attributes:
        pcm: float32 ``[samples]`` in -1..1, at 24 kHz.
    """

    pcm: npt.NDArray[np.float32]


@dataclass(frozen=True)
class Text:
    """Text that follows the text before; a word begins with a space."""

    text: str


@dataclass(frozen=True)
class Metadata:
    """Facts about the session: ``seed``, ``lag_ms``, ``step_ms``, ``resume_token``, ..."""

    values: dict[str, Any]


@dataclass(frozen=True)
class Notice:
    """What the server tells its users, as that it shuts down."""

    text: str


Event = Audio | Text | Metadata | Notice


class Connection:
    """An open conversation: send samples, iterate over what comes. Made by :func:`connect`."""

    def __init__(self, socket: ClientConnection) -> None:
        self._socket = socket
        self._metadata: dict[str, Any] = {}
        self._closing = False

    @property
    def metadata(self) -> dict[str, Any]:
        """The newest metadata."""
        return self._metadata

    @property
    def resume_token(self) -> str | None:
        """Opens the conversation again after a lost connection, for a while."""
        return self._metadata.get("resume_token")

    async def send(self, pcm: npt.ArrayLike) -> None:
        """Sends samples.

        Args:
            pcm: float32 ``[samples]`` in -1..1, at 24 kHz, of any length. Send them at the pace of
                speech: the server drops what is far ahead.

        Raises:
            InputError: For samples of another shape, or that are not finite.
            SessionError: The conversation is over.
        """
        from websockets.exceptions import ConnectionClosed

        samples = np.asarray(pcm, dtype=np.float32)
        if samples.ndim != 1 or not np.isfinite(samples).all():
            reason = f"pcm: {samples.shape} is not a shape [samples], or samples are not finite"
            raise errors.InputError(reason)
        quantised = np.clip(samples * 32768.0, -32768, 32767).astype("<i2")
        try:
            await self._socket.send(bytes([_AUDIO]) + quantised.tobytes())
        except ConnectionClosed as error:
            raise self._over(error) from error

    async def __aiter__(self) -> AsyncIterator[Event]:
        """What the server sends, until one side says goodbye.

        Raises:
            SessionError: The connection broke, or the server ended it for another reason, as that
                it shuts down. ``connect(..., resume=call.resume_token)`` may go on.
        """
        from websockets.exceptions import ConnectionClosed

        while True:
            try:
                message = await self._socket.recv()
            except ConnectionClosed as error:
                if self._closing or _said(error)[0] == _NORMAL:
                    return
                raise self._over(error) from error
            event = self._event(message)
            if event is not None:
                yield event

    async def close(self) -> None:
        """Says goodbye; the session is over."""
        self._closing = True
        await self._socket.close()

    async def __aenter__(self) -> Connection:
        """Itself."""
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Says goodbye."""
        await self.close()

    def _over(self, error: ConnectionClosed) -> errors.SessionError:
        code, reason = _said(error)
        return errors.SessionError(f"the conversation is over with code {code}: {reason}")

    def _event(self, message: str | bytes) -> Event | None:
        if isinstance(message, str) or not message:
            return None
        kind, payload = message[0], message[1:]
        if kind == _AUDIO:
            return Audio(np.frombuffer(payload, "<i2").astype(np.float32) / np.float32(32768.0))
        if kind == _TEXT:
            return Text(payload.decode())
        if kind == _METADATA:
            self._metadata = json.loads(payload)
            return Metadata(self._metadata)
        if kind == _ERROR:
            return Notice(payload.decode())
        return None


async def connect(
    url: str,
    *,
    api_key: str | None = None,
    resume: str | None = None,
    seed: int | None = None,
    temperature: float | None = None,
    text_temperature: float | None = None,
    top_k: int | None = None,
    top_k_text: int | None = None,
    ssl: ssl.SSLContext | None = None,
) -> Connection:
    """Opens a conversation and returns when the model listens.

    Args:
        url: The server, as ``ws://host:8998``, ``wss://``, ``http://`` or ``https://``.
        api_key: Key, sent as a header.
        resume: Token of a conversation to go on with; its settings are its own.
        seed: Seed of the draws; None draws one, which the metadata show.
        temperature: Temperature of audio tokens; None is the server's.
        text_temperature: Temperature of text tokens; None is the server's.
        top_k: Draw audio tokens from this many; None is the server's.
        top_k_text: As ``top_k``, for text.
        ssl: For servers with a certificate of their own.

    Returns:
        The conversation, an asynchronous context manager that closes it.

    Raises:
        ImportError: Without the package ``websockets``.
        CapacityError: The server is full.
        SessionError: The server refuses for another reason.
        OSError: The server cannot be reached.
    """
    try:
        import websockets
    except ImportError as error:
        reason = 'the package websockets is missing: pip install "moshi-rs[client]"'
        raise ImportError(reason) from error
    options: dict[str, Any] = {
        "audio": "pcm16",
        "resume": resume,
        "seed": seed,
        "audio_temperature": temperature,
        "text_temperature": text_temperature,
        "audio_topk": top_k,
        "text_topk": top_k_text,
    }
    headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
    arguments: dict[str, Any] = {"additional_headers": headers, "compression": None}
    if ssl is not None:
        arguments["ssl"] = ssl
    try:
        socket = await websockets.connect(_address(url, options), **arguments)
    except websockets.InvalidStatus as error:
        message = f"the server refuses: {_reason(error)}"
        raise errors.SessionError(message) from error
    try:
        first = await socket.recv()
    except websockets.ConnectionClosed as error:
        code, reason = _said(error)
        kind = errors.CapacityError if code == _FULL else errors.SessionError
        message = f"the server refuses with code {code}: {reason}"
        raise kind(message) from error
    except BaseException:
        # Nobody else knows the socket; a cancelled caller has no time for a goodbye.
        socket.transport.abort()
        raise
    if not isinstance(first, bytes) or first[:1] != bytes([_HANDSHAKE]):
        socket.transport.abort()
        message = "the server does not speak the protocol of /api/chat"
        raise errors.SessionError(message)
    return Connection(socket)


def _said(error: ConnectionClosed) -> tuple[int, str]:
    """Code and reason of the server's goodbye."""
    if error.rcvd is None:
        return _BROKEN, "the connection broke"
    return error.rcvd.code, error.rcvd.reason


def _address(url: str, options: dict[str, Any]) -> str:
    parts = urlsplit(url if "://" in url else f"ws://{url}")
    scheme = {"http": "ws", "https": "wss"}.get(parts.scheme, parts.scheme)
    given = {name: value for name, value in options.items() if value is not None}
    path = parts.path if parts.path not in ("", "/") else "/api/chat"
    query = "&".join(filter(None, [parts.query, urlencode(given)]))
    return urlunsplit((scheme, parts.netloc, path, query, ""))


def _reason(error: InvalidStatus) -> str:
    try:
        return str(json.loads(error.response.body)["error"]["message"])
    except (AttributeError, KeyError, TypeError, ValueError):
        return f"status {error.response.status_code}"
