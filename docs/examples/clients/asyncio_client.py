"""Says a recording to a server at the pace of speech, and prints and writes the answer.

    python asyncio_client.py ws://127.0.0.1:8998 question.wav answer.wav

The recording is mono, of 16 bits at 24 kHz. Needs ``pip install "moshi-rs[client]"``.
"""

from __future__ import annotations

import asyncio
import os
import sys
import wave

import numpy as np

from moshi_rs import aio

RATE_HZ = 24_000
FRAME_SAMPLES = 1_920
# Silence after the question, in which the model answers.
SILENCE_FRAMES = 100


async def main(url: str, question: str, answer: str) -> str:
    """One conversation; gives what the model said."""
    with wave.open(question) as recording:
        assert (recording.getframerate(), recording.getsampwidth()) == (RATE_HZ, 2)
        samples = np.frombuffer(recording.readframes(recording.getnframes()), "<i2")
    heard = (samples / 32_768).astype(np.float32)
    frames = [heard[begin : begin + FRAME_SAMPLES] for begin in range(0, len(heard), FRAME_SAMPLES)]
    frames[-1] = np.pad(frames[-1], (0, FRAME_SAMPLES - len(frames[-1])))
    frames += [np.zeros(FRAME_SAMPLES, np.float32)] * SILENCE_FRAMES
    spoken: list[np.ndarray] = []
    said = ""

    async def listen(call: aio.Connection) -> None:
        nonlocal said
        async for event in call:
            if isinstance(event, aio.Audio):
                spoken.append(event.pcm)
            elif isinstance(event, aio.Text):
                said += event.text
                print(event.text, end="", flush=True)

    key = os.environ.get("MOSHI_RS_API_KEY")
    async with await aio.connect(url, api_key=key, seed=7) as call:
        listening = asyncio.create_task(listen(call))
        begin = asyncio.get_running_loop().time()
        for number, frame in enumerate(frames):
            now = asyncio.get_running_loop().time()
            await asyncio.sleep(begin + number * FRAME_SAMPLES / RATE_HZ - now)
            await call.send(frame)
        await asyncio.sleep(0.5)
        # The server's goodbye ends the listening.
        await call.close()
        await listening
    print()
    with wave.open(answer, "wb") as recording:
        recording.setparams((1, 2, RATE_HZ, 0, "NONE", "not compressed"))
        pcm = np.concatenate(spoken) if spoken else np.zeros(0, np.float32)
        recording.writeframes(np.rint(np.clip(pcm, -1, 1) * 32_767).astype("<i2").tobytes())
    return said


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
