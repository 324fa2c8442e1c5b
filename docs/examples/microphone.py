"""Talk with a model: microphone to frames, frames to loudspeaker. Ctrl-C ends it."""

from __future__ import annotations

import queue
import sys

import numpy as np
import sounddevice

import moshi_rs

FRAMES_WAITING = 3  # 240 ms; more would only be delay


def put(frames: queue.Queue[np.ndarray], frame: np.ndarray) -> None:
    """Adds a frame; the oldest one goes where there is no room."""
    while frames.full():
        frames.get_nowait()
    frames.put_nowait(frame)


def talk(model: moshi_rs.StreamingModel, frames: float = float("inf")) -> None:
    """Steps one frame after another, as the sound device gives and takes them."""
    heard: queue.Queue[np.ndarray] = queue.Queue(FRAMES_WAITING)
    spoken: queue.Queue[np.ndarray] = queue.Queue(FRAMES_WAITING)

    def callback(indata: np.ndarray, outdata: np.ndarray, *_: object) -> None:
        put(heard, indata[:, 0].copy())
        try:
            outdata[:, 0] = spoken.get_nowait()
        except queue.Empty:
            outdata.fill(0.0)  # the model has not spoken in time

    session = model.new_session()
    with sounddevice.Stream(
        samplerate=model.sample_rate,
        blocksize=model.frame_size,
        channels=1,
        dtype="float32",
        callback=callback,
    ):
        while frames > 0:
            pcm, text = session.step(heard.get(timeout=5))
            put(spoken, pcm)
            print(text, end="", flush=True)
            frames -= 1


if __name__ == "__main__":
    try:
        talk(moshi_rs.StreamingModel.load(*sys.argv[1:2]))
    except KeyboardInterrupt:
        print()
