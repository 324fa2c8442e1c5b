"""SIGTERM while many are talking: everyone is told and heard to the end, nobody new gets in."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import signal
import time
import urllib.error
import urllib.request
from dataclasses import dataclass, field

import websockets

from support import started

FRAME_S = 0.08
SAMPLES = bytes(2 * 1920)
AUDIO, NOTICE = 1, 5
CHATS, REALTIMES, LIVES = 8, 2, 2
DRAIN_S = 4
GOING_AWAY = 1001


@dataclass
class Caller:
    """Talks at the pace of speech until the server ends it, and keeps when what came."""

    kind: str
    told: list[float] = field(default_factory=list)
    heard: list[float] = field(default_factory=list)
    code: int | None = None

    async def call(self, host, port):
        path = {
            "chat": "api/chat?audio=pcm16",
            "realtime": "v1/realtime",
            "live": "v1/live/sessions",
        }
        async with websockets.connect(f"ws://{host}:{port}/{path[self.kind]}") as connection:
            if self.kind == "live":
                await connection.send(json.dumps({"type": "session.start", "session": {}}))
            talking = asyncio.create_task(self.talk(connection))
            async for message in connection:
                self.take(message)
            talking.cancel()
            with contextlib.suppress(asyncio.CancelledError, websockets.ConnectionClosed):
                await talking
            self.code = connection.close_code

    async def talk(self, connection):
        names = {"realtime": "input_audio_buffer.append", "live": "session.input_audio.append"}
        message = bytes([AUDIO]) + SAMPLES
        if self.kind in names:
            audio = base64.b64encode(SAMPLES).decode()
            message = json.dumps({"type": names[self.kind], "audio": audio})
        begin, count = time.monotonic(), 0
        while True:
            await connection.send(message)
            count += 1
            await asyncio.sleep(max(0.0, begin + count * FRAME_S - time.monotonic()))

    def take(self, message):
        now = time.monotonic()
        if isinstance(message, bytes):
            if message[0] == AUDIO:
                self.heard.append(now)
            elif message[0] == NOTICE:
                assert b"shuts down in" in message
                self.told.append(now)
            return
        event = json.loads(message)
        if event["type"] == "session.output_audio.delta":
            self.heard.append(now)
        elif event["type"] == "info":
            assert event["code"] == "server_draining"
            self.told.append(now)
        elif event["type"] == "session.updated":
            assert abs(event["session"]["expires_at"] - time.time() - DRAIN_S) <= 2
            self.told.append(now)


def status(url) -> int:
    try:
        with urllib.request.urlopen(url) as answer:
            return answer.status
    except urllib.error.HTTPError as error:
        return error.code


async def refused(host, port) -> list[int]:
    """What new callers are answered."""
    found = []
    for path in "api/chat", "v1/realtime", "v1/live/sessions":
        try:
            async with websockets.connect(f"ws://{host}:{port}/{path}"):
                found.append(101)
        except websockets.InvalidStatus as error:
            found.append(error.response.status_code)
    return found


async def shut_down(process, host, port):
    kinds = ["chat"] * CHATS + ["realtime"] * REALTIMES + ["live"] * LIVES
    callers = [Caller(kind) for kind in kinds]
    calls = asyncio.gather(*(caller.call(host, port) for caller in callers))
    while sum(len(caller.heard) for caller in callers) < 20 * (CHATS + LIVES):
        await asyncio.sleep(0.05)
        assert not calls.done()
    process.send_signal(signal.SIGTERM)
    signalled = time.monotonic()
    while not all(caller.told for caller in callers):
        await asyncio.sleep(0.02)
        assert not calls.done()
    assert await refused(host, port) == [503, 503, 503]
    assert await asyncio.to_thread(status, f"http://{host}:{port}/readyz") == 503
    assert await asyncio.to_thread(status, f"http://{host}:{port}/healthz") == 200
    await calls
    code = await asyncio.to_thread(process.wait, DRAIN_S + 10)
    return callers, signalled, code


def test_everyone_is_told_and_heard_to_the_end():
    with started("--max-sessions", "16", drain=DRAIN_S) as (process, host, port):
        callers, signalled, code = asyncio.run(shut_down(process, host, port))
    assert code == 0
    for caller in callers:
        assert len(caller.told) == 1, caller.kind
        assert caller.code == GOING_AWAY
        if caller.kind != "realtime":  # whose model is silent here
            after = sum(time > signalled for time in caller.heard)
            assert after >= 0.8 * DRAIN_S / FRAME_S, (
                f"{caller.kind}: {after} frames after the signal"
            )
