"""The asyncio client against a server of the test that speaks the protocol."""

from __future__ import annotations

import asyncio
import json
import runpy
import wave
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import pytest

from moshi_rs import aio, errors
from support import REPOSITORY

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from pathlib import Path

    from websockets.asyncio.server import ServerConnection

websockets = pytest.importorskip("websockets")

T = TypeVar("T")
METADATA = {"seed": "7", "resume_token": "secret", "lag_ms": 0}


def converse(
    handler: Callable[[ServerConnection], Awaitable[None]], client: Callable[[str], Awaitable[T]]
) -> T:
    async def both() -> T:
        async with websockets.serve(handler, "127.0.0.1", 0) as server:
            port = server.sockets[0].getsockname()[1]
            return await client(f"http://127.0.0.1:{port}")

    return asyncio.run(both())


def test_a_conversation_has_audio_text_metadata_and_notices() -> None:
    seen: dict[str, Any] = {}

    async def handler(socket: ServerConnection) -> None:
        assert socket.request is not None
        seen["path"] = socket.request.path
        seen["key"] = socket.request.headers["Authorization"]
        await socket.send(bytes(9))
        await socket.send(b"\x04" + json.dumps(METADATA).encode())
        message = await socket.recv()
        seen["audio"] = message
        await socket.send(message)
        await socket.send(b"\x06")
        await socket.send(b"\xee?")
        await socket.send(b"\x02 h\xc3\xa9")
        await socket.send(b"\x05soon")
        await socket.close(1000)

    async def client(url: str) -> list[aio.Event]:
        call = await aio.connect(url, api_key="the key", seed=7, text_temperature=0.0)
        async with call:
            await call.send(np.array([0.0, 0.5, -1.0, 2.0]))
            events = [event async for event in call]
            assert call.resume_token == "secret"
            assert call.metadata == METADATA
        return events

    metadata, audio, text, notice = converse(handler, client)
    assert seen["path"] == "/api/chat?audio=pcm16&seed=7&text_temperature=0.0"
    assert seen["key"] == "Bearer the key"
    assert seen["audio"] == b"\x01\x00\x00\x00\x40\x00\x80\xff\x7f"
    assert metadata == aio.Metadata(METADATA)
    assert isinstance(audio, aio.Audio)
    assert audio.pcm.dtype == np.float32
    np.testing.assert_allclose(audio.pcm, [0.0, 0.5, -1.0, 1.0], atol=1e-4)
    assert (text, notice) == (aio.Text(" hé"), aio.Notice("soon"))


@pytest.mark.parametrize(
    ("code", "kind"), [(1013, errors.CapacityError), (1008, errors.SessionError)]
)
def test_a_refusal_is_an_exception(code: int, kind: type[Exception]) -> None:
    async def handler(socket: ServerConnection) -> None:
        await socket.close(code, "not now")

    with pytest.raises(kind, match=f"{code}: not now"):
        converse(handler, aio.connect)


def test_samples_are_checked() -> None:
    async def handler(socket: ServerConnection) -> None:
        await socket.send(bytes(9))
        await socket.wait_closed()

    async def client(url: str) -> None:
        async with await aio.connect(url) as call:
            for bad in (np.zeros((2, 3)), [float("nan")]):
                with pytest.raises(errors.InputError, match="pcm"):
                    await call.send(bad)

    converse(handler, client)


def test_the_example_of_the_guide_writes_the_answer(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    frames = 0

    async def handler(socket: ServerConnection) -> None:
        nonlocal frames
        await socket.send(bytes(9))
        async for message in socket:
            frames += 1
            await socket.send(message)
            await socket.send(f" {frames}".encode().rjust(len(f" {frames}") + 1, b"\x02"))

    question, answer = tmp_path / "question.wav", tmp_path / "answer.wav"
    samples = np.arange(2_000, dtype="<i2")
    with wave.open(str(question), "wb") as file:
        file.setparams((1, 2, 24_000, 0, "NONE", ""))
        file.writeframes(samples.tobytes())
    program = REPOSITORY / "docs/examples/clients/asyncio_client.py"
    main = runpy.run_path(str(program))["main"]
    main.__globals__["SILENCE_FRAMES"] = 1
    said = converse(handler, lambda url: main(url, str(question), str(answer)))
    assert said == " 1 2 3"
    assert capsys.readouterr().out == " 1 2 3\n"
    with wave.open(str(answer)) as file:
        heard = np.frombuffer(file.readframes(file.getnframes()), "<i2")
    assert len(heard) == 3 * 1_920
    np.testing.assert_allclose(heard[:2_000], samples, atol=2)


def test_a_cancelled_connect_leaves_no_socket_behind() -> None:
    gone: list[bool] = []

    async def handler(socket: ServerConnection) -> None:
        # It never says that it listens.
        await socket.wait_closed()
        gone.append(True)

    async def client(url: str) -> bool:
        with pytest.raises(asyncio.TimeoutError):
            await asyncio.wait_for(aio.connect(url), 0.3)
        for _ in range(500):
            if gone:
                return True
            await asyncio.sleep(0.01)
        return False

    assert converse(handler, client), "the connection is still there"


@pytest.mark.parametrize("code", [1001, 1008, 1011, None])
def test_an_end_that_is_no_goodbye_is_an_exception(code: int | None) -> None:
    async def handler(socket: ServerConnection) -> None:
        await socket.send(bytes(9))
        await socket.send(b"\x02 hi")
        if code is None:
            socket.transport.abort()
        else:
            await socket.close(code, "not any more")

    async def client(url: str) -> list[aio.Event]:
        call = await aio.connect(url)
        seen = aiter(call)
        events = [await anext(seen)]
        shown = "1006: the connection broke" if code is None else f"{code}: not any more"
        with pytest.raises(errors.SessionError, match=shown):
            await anext(seen)
        with pytest.raises(errors.SessionError, match=shown):
            await call.send(np.zeros(3))
        await call.close()
        return events

    assert converse(handler, client) == [aio.Text(" hi")]


def test_ones_own_goodbye_ends_the_iteration() -> None:
    async def handler(socket: ServerConnection) -> None:
        await socket.send(bytes(9))
        await socket.wait_closed()

    async def client(url: str) -> list[aio.Event]:
        call = await aio.connect(url)
        asyncio.get_running_loop().call_later(0.1, lambda: tasks.append(close(call)))
        return [event async for event in call]

    def close(call: aio.Connection) -> asyncio.Task[None]:
        return asyncio.ensure_future(call.close())

    tasks: list[asyncio.Task[None]] = []
    assert converse(handler, client) == []
