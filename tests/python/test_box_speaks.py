"""Whole conversations with the model in the box: recorded questions, answers in words and sound."""

from __future__ import annotations

import wave
from typing import Literal, TypeAlias

import numpy as np
import pytest
from numpy.typing import NDArray

import moshi_rs
from support import REPOSITORY

GREETING = "Hi there! How can I help you?"
# Spoken by synthesizers: tests/audio/README.md.
ANSWERS = {
    "box_france.wav": "The capital of France is Paris.",
    "box_joke.wav": "Why was the computer cold? It left its windows open.",
    "box_sky.wav": "On a clear day, the sky is blue.",
}
# Of weights, then of keys and values.
Formats: TypeAlias = tuple[Literal["f32", "bf16", "q8", "q4"], Literal["auto", "q8"]]
FORMATS: tuple[Formats, ...] = (
    ("f32", "auto"),
    ("bf16", "auto"),
    ("q8", "auto"),
    ("q4", "auto"),
    ("f32", "q8"),
    ("q8", "q8"),
)


def read_wav(name: str) -> NDArray[np.float32]:
    """A recording of 24 kHz, mono, 16 bits."""
    with wave.open(str(REPOSITORY / "tests" / "audio" / name)) as file:
        assert (file.getframerate(), file.getnchannels(), file.getsampwidth()) == (24_000, 1, 2)
        data = file.readframes(file.getnframes())
    samples: NDArray[np.float32] = np.frombuffer(data, "<i2").astype(np.float32)
    samples /= 32768
    return samples


def channel(recording: str) -> tuple[NDArray[np.float32], int]:
    """The user's sound: the greeting is heard out, a question, time to answer; frames before it."""
    question = read_wav(recording)
    before, after = 45 * 1920, 60 * 1920
    sound = np.pad(question, (before, after + -len(question) % 1920))
    return sound.astype(np.float32), (before + len(question)) // 1920


@pytest.mark.parametrize("formats", FORMATS, ids="-".join)
@pytest.mark.parametrize("recording", ANSWERS)
def test_it_greets_waits_and_answers(recording: str, formats: Formats) -> None:
    dtype, kv_dtype = formats
    converse(moshi_rs.StreamingModel.load(dtype=dtype, kv_dtype=kv_dtype), recording)


def test_it_does_so_with_a_fast_codec() -> None:
    for recording in ANSWERS:
        converse(moshi_rs.StreamingModel.load(dtype="q8", codec="fast"), recording)


def converse(model: moshi_rs.StreamingModel, recording: str) -> None:
    session = model.new_session(seed=1, temperature=0.0, text_temperature=0.0)
    sound, asked = channel(recording)
    steps = [session.step(frame) for frame in sound.reshape(-1, model.frame_size)]
    texts = [text for _, text in steps]
    loud = np.array([np.abs(pcm).max() for pcm, _ in steps]) > 0.02
    assert "".join(texts[:38]).strip() == GREETING
    assert not "".join(texts[38:asked]).strip()
    assert "".join(texts[asked:]).strip() == ANSWERS[recording]
    # It is heard when it says something, and silent while it is spoken to.
    assert loud[:38].any()
    assert loud[asked:].any()
    assert not loud[asked - 12 : asked].any()
