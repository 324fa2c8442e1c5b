"""Write down what is said in a recording, with a Kyutai STT model."""

from __future__ import annotations

import json
import sys
import wave
from pathlib import Path

import numpy as np

import moshi_rs


def transcribe(folder: Path, recording: Path) -> str:
    """Text of a wav file: mono, 16 bit, at the model's rate."""
    model = moshi_rs.StreamingModel.load(folder)
    with wave.open(str(recording)) as file:
        if file.getparams()[:3] != (1, 2, model.sample_rate):
            sys.exit(f"{recording}: not mono, 16 bit, {model.sample_rate} Hz")
        speech = np.frombuffer(file.readframes(file.getnframes()), dtype=np.int16)

    # The text lags behind the sound, and some models want silence first.
    timing = json.loads((folder / "config.json").read_text()).get("stt_config", {})
    before = int(timing.get("audio_silence_prefix_seconds", 0.0) * model.sample_rate)
    after = int((timing.get("audio_delay_seconds", 0.5) + 0.5) * model.sample_rate)
    samples = np.pad(speech, (before, after))
    samples = np.pad(samples, (0, -len(samples) % model.frame_size))

    session = model.new_session()
    return "".join(session.step(frame)[1] for frame in samples.reshape(-1, model.frame_size))


if __name__ == "__main__":
    print(transcribe(Path(sys.argv[1]), Path(sys.argv[2])))
