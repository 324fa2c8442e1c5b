"""OpenAI's SDK talks with the server: Realtime, its beta, and Live."""

from __future__ import annotations

import base64
import contextlib
import threading
import time
import wave

import numpy as np
import openai
import pytest

from support import QUESTION, one_is_in_time, server

RATE = 24_000
CHUNK = 2_400  # 100 ms
# As the usage of a response counts audio: eight for every 80 ms.
TOKENS_PER_SECOND = 100
# Of silence, after the question.
LISTEN_S = 10
TOLERANCE_S = 0.5
# A step's time, and what the test itself needs.
MOST_BEHIND_S = 0.2


def question() -> np.ndarray:
    """The recorded question, as samples of 16 bits."""
    with wave.open(str(QUESTION)) as wav:
        assert wav.getframerate() == RATE
        assert wav.getsampwidth() == 2
        data = np.frombuffer(wav.readframes(wav.getnframes()), np.int16)
        return data.reshape(-1, wav.getnchannels())[:, 0]


@contextlib.contextmanager
def speaking(append, finish=lambda: None):
    """Says the question at the pace of speech meanwhile, then silence; ``finish`` lies between."""
    asked = question()
    asked = np.pad(asked, (0, -len(asked) % CHUNK))
    over = threading.Event()

    def say():
        begin = time.monotonic()
        audio = np.concatenate([asked, np.zeros(LISTEN_S * RATE, np.int16)])
        for start in range(0, len(audio), CHUNK):
            if over.wait(max(0.0, begin + start / RATE - time.monotonic())):
                return
            append(base64.b64encode(audio[start : start + CHUNK].tobytes()).decode())
            if start + CHUNK == len(asked):
                finish()

    thread = threading.Thread(target=say)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


class Heard:
    """What came of the model's voice, and when."""

    def __init__(self):
        self.audio, self.begin, self.behind = bytearray(), None, 0.0

    def hear(self, delta):
        """One piece of audio, in base64."""
        now = time.monotonic()
        self.begin = self.begin or now
        if now - self.begin > 1:
            self.behind = max(self.behind, now - self.begin - self.seconds())
        self.audio += base64.b64decode(delta)

    def seconds(self):
        return len(self.audio) / 2 / RATE

    def check(self, seconds, text, transcript) -> str:
        """Judges a whole answer of this duration, and gives its lag."""
        samples = np.frombuffer(self.audio, np.int16) / 32768
        assert np.sqrt(np.mean(samples**2)) > 1e-3, "silence"
        assert text.strip()
        assert transcript == text
        assert abs(self.seconds() - seconds) <= TOLERANCE_S
        return f"{self.behind:.2f} s behind" if self.behind > MOST_BEHIND_S else ""


def realtime(beta) -> str:
    with server("--seed", "1") as (host, port):
        client = openai.OpenAI(
            base_url=f"http://{host}:{port}/v1",
            websocket_base_url=f"ws://{host}:{port}/v1",
            api_key="not-needed",
        )
        protocol = client.beta.realtime if beta else client.realtime
        names = ("response.audio", "response.audio_transcript")
        if not beta:
            names = ("response.output_audio", "response.output_audio_transcript")
        with protocol.connect(model="moshi") as connection:
            assert connection.recv().type == "session.created"
            session = {"instructions": "Be brief."} if beta else {"type": "realtime"}
            connection.session.update(session=session)
            buffer = connection.input_audio_buffer
            heard, text, seen = Heard(), "", set()
            with speaking(lambda audio: buffer.append(audio=audio), buffer.commit):
                for event in connection:
                    seen.add(event.type)
                    assert event.type != "error", event
                    if event.type == f"{names[0]}.delta":
                        heard.hear(event.delta)
                    elif event.type == f"{names[1]}.delta":
                        text += event.delta
                    elif event.type == f"{names[1]}.done":
                        transcript = event.transcript
                    elif event.type == "response.done" and text:
                        tokens = event.response.usage.output_token_details.audio_tokens
                        break
        assert {"session.updated", "response.created", "input_audio_buffer.committed"} <= seen
        return heard.check(tokens / TOKENS_PER_SECOND, text, transcript)


@pytest.mark.parametrize("beta", [False, True], ids=["current", "beta"])
def test_realtime(beta):
    one_is_in_time(lambda: realtime(beta))


def live() -> str:
    with server("--seed", "1") as (host, port):
        client = openai.OpenAI(base_url=f"http://{host}:{port}/v1", api_key="not-needed")
        seconds = len(question()) / RATE + LISTEN_S
        with client.live.connect() as connection:
            connection.session.start(session={"model": "moshi"})
            assert connection.recv().type == "session.started"
            heard, text = Heard(), ""

            def append(audio):
                connection.send({"type": "session.input_audio.append", "audio": audio})

            def take(event):
                nonlocal text
                assert event.type != "error", event
                if event.type == "session.output_audio.delta":
                    heard.hear(event.delta)
                elif event.type == "session.output_transcript.delta":
                    text += event.delta

            with speaking(append):
                while heard.seconds() < seconds - TOLERANCE_S:
                    take(connection.recv())
            connection.send({"type": "session.close"})
            while (event := connection.recv()).type != "session.closed":
                take(event)
        assert abs(event.usage.seconds - heard.seconds()) <= TOLERANCE_S
        return heard.check(seconds, text, text)


def test_live():
    one_is_in_time(live)


def test_models():
    with server() as (host, port):
        client = openai.OpenAI(base_url=f"http://{host}:{port}/v1", api_key="not-needed")
        assert len(client.models.list().data) == 1
