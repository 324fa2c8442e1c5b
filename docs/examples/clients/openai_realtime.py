"""Asks a server a recorded question with OpenAI's SDK, and prints and writes the answer.

    python openai_realtime.py http://127.0.0.1:8998/v1 question.wav answer.wav

The recording is mono, of 16 bits at 24 kHz. Needs ``pip install "openai[realtime]"``.
"""

from __future__ import annotations

import base64
import os
import sys
import wave

from openai import OpenAI

RATE_HZ = 24_000
CHUNK_BYTES = 4_800  # 100 ms
# Silence after the question, in which the model answers.
SILENCE_BYTES = 2 * RATE_HZ * 8


def main(base_url: str, question: str, answer: str) -> None:
    """One question, one answer."""
    with wave.open(question) as recording:
        assert (recording.getframerate(), recording.getsampwidth()) == (RATE_HZ, 2)
        audio = recording.readframes(recording.getnframes()) + bytes(SILENCE_BYTES)
    client = OpenAI(base_url=base_url, api_key=os.environ.get("MOSHI_RS_API_KEY", "none"))
    spoken = bytearray()
    with client.realtime.connect(model="moshi") as call:
        # Audio may come faster than real time: the server reads as fast as the model hears.
        for begin in range(0, len(audio), CHUNK_BYTES):
            chunk = audio[begin : begin + CHUNK_BYTES]
            call.input_audio_buffer.append(audio=base64.b64encode(chunk).decode())
        call.input_audio_buffer.commit()
        said = ""
        for event in call:
            if event.type == "response.output_audio.delta":
                spoken += base64.b64decode(event.delta)
            elif event.type == "response.output_audio_transcript.delta":
                said += event.delta
                print(event.delta, end="", flush=True)
            elif event.type == "error":
                raise SystemExit(event.error.message)
            elif event.type == "response.done" and said:
                break
    print()
    with wave.open(answer, "wb") as recording:
        recording.setparams((1, 2, RATE_HZ, 0, "NONE", "not compressed"))
        recording.writeframes(spoken)


if __name__ == "__main__":
    main(*sys.argv[1:])
