"""OpenAI's SDK talks with the server: Realtime, its beta, and Live."""

from __future__ import annotations

import base64
import wave

import numpy as np
import openai
import pytest

from support import QUESTION, server

RATE = 24_000
CHUNK = 4_800  # bytes: 100 ms


def question() -> bytes:
    """The recorded question and ten seconds of silence, as samples of 16 bits."""
    with wave.open(str(QUESTION)) as wav:
        assert wav.getframerate() == RATE
        assert wav.getsampwidth() == 2
        data = np.frombuffer(wav.readframes(wav.getnframes()), np.int16)
        mono = data.reshape(-1, wav.getnchannels())[:, 0]
    return mono.tobytes() + bytes(2 * RATE * 10)


def chunks():
    audio = question()
    for start in range(0, len(audio), CHUNK):
        yield base64.b64encode(audio[start : start + CHUNK]).decode()


def check(audio: bytes, text: str, transcript: str, frames: int | None = None) -> None:
    samples = np.frombuffer(audio, np.int16) / 32768
    assert np.sqrt(np.mean(samples**2)) > 1e-3, "silence"
    assert text.strip()
    assert transcript == text
    if frames is not None:
        assert abs(len(samples) / 1920 - frames) <= 6


@pytest.mark.parametrize("beta", [False, True], ids=["current", "beta"])
def test_realtime(beta):
    with server("--seed", "1") as (host, port):
        client = openai.OpenAI(
            base_url=f"http://{host}:{port}/v1",
            websocket_base_url=f"ws://{host}:{port}/v1",
            api_key="not-needed",
        )
        realtime = client.beta.realtime if beta else client.realtime
        names = ("response.audio", "response.audio_transcript")
        if not beta:
            names = ("response.output_audio", "response.output_audio_transcript")
        with realtime.connect(model="moshi") as connection:
            assert connection.recv().type == "session.created"
            session = {"instructions": "Be brief."} if beta else {"type": "realtime"}
            connection.session.update(session=session)
            for chunk in chunks():
                connection.input_audio_buffer.append(audio=chunk)
            connection.input_audio_buffer.commit()
            audio, text, seen = bytearray(), "", set()
            for event in connection:
                seen.add(event.type)
                assert event.type != "error", event
                if event.type == f"{names[0]}.delta":
                    audio += base64.b64decode(event.delta)
                elif event.type == f"{names[1]}.delta":
                    text += event.delta
                elif event.type == f"{names[1]}.done":
                    transcript = event.transcript
                elif event.type == "response.done" and text:
                    break
        assert {"session.updated", "response.created", "input_audio_buffer.committed"} <= seen
        check(bytes(audio), text, transcript)


def test_live():
    with server("--seed", "1") as (host, port):
        client = openai.OpenAI(base_url=f"http://{host}:{port}/v1", api_key="not-needed")
        sent = len(question()) // 2 // 1920
        with client.live.connect() as connection:
            connection.session.start(session={"model": "moshi"})
            assert connection.recv().type == "session.started"
            for chunk in chunks():
                connection.send({"type": "session.input_audio.append", "audio": chunk})
            audio, text = bytearray(), ""
            while len(audio) < 2 * 1920 * sent:
                event = connection.recv()
                assert event.type != "error", event
                if event.type == "session.output_audio.delta":
                    audio += base64.b64decode(event.delta)
                elif event.type == "session.output_transcript.delta":
                    text += event.delta
            connection.send({"type": "session.close"})
            while (event := connection.recv()).type != "session.closed":
                pass
        check(bytes(audio), text, text, sent)


def test_models():
    with server() as (host, port):
        client = openai.OpenAI(base_url=f"http://{host}:{port}/v1", api_key="not-needed")
        assert len(client.models.list().data) == 1
