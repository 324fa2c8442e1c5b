"""What rooms, microphones and lines do to speech. Waveforms are float32, mono, at 24 kHz."""

from __future__ import annotations

import numpy as np

import voices


def decibels(value: float) -> float:
    """The factor of an amplitude."""
    return float(10 ** (value / 20))


def noise(length: int, random_source: np.random.Generator) -> np.ndarray:
    """Noise of unit power whose spectrum falls with a random slope, sometimes with a hum."""
    spectrum = np.fft.rfft(random_source.standard_normal(max(length, 2)))
    frequency = np.maximum(np.fft.rfftfreq(max(length, 2), 1 / voices.SAMPLE_RATE), 60.0)
    spectrum *= (frequency / 1000) ** -random_source.uniform(0.0, 1.0)
    result = np.fft.irfft(spectrum, max(length, 2))[:length]
    result /= max(float(np.sqrt(np.mean(result**2))), 1e-9)
    if random_source.random() < 0.2:
        seconds = np.arange(length) / voices.SAMPLE_RATE
        result += 0.7 * np.sin(
            2 * np.pi * random_source.choice([50.0, 60.0, 100.0, 120.0]) * seconds
        )
    return result.astype(np.float32)


def band_limit(samples: np.ndarray, random_source: np.random.Generator) -> np.ndarray:
    """As over a telephone or through a small microphone: soft edges at random frequencies."""
    # Longer, so that the end does not ring into the start.
    size = len(samples) + 2048
    spectrum = np.fft.rfft(samples, size)
    frequency = np.fft.rfftfreq(size, 1 / voices.SAMPLE_RATE)
    low, high = random_source.uniform(50, 300), random_source.uniform(3300, 9000)
    shape = 1 / (1 + (low / np.maximum(frequency, 1.0)) ** 4) / (1 + (frequency / high) ** 8)
    return np.fft.irfft(spectrum * shape, size)[: len(samples)].astype(np.float32)


def reverberate(samples: np.ndarray, random_source: np.random.Generator) -> np.ndarray:
    """A room as decaying noise after the direct sound; as long as the input."""
    length = int(voices.SAMPLE_RATE * random_source.uniform(0.08, 0.35))
    seconds = np.arange(length) / voices.SAMPLE_RATE
    response = random_source.standard_normal(length) * np.exp(
        -6.9 * seconds / (length / voices.SAMPLE_RATE)
    )
    response *= random_source.uniform(0.1, 0.5) / np.sqrt(np.sum(response**2))
    response[0] = 1.0
    size = len(samples) + length
    wet = np.fft.irfft(np.fft.rfft(samples, size) * np.fft.rfft(response, size), size)
    return wet[: len(samples)].astype(np.float32)


def warp(samples: np.ndarray, factor: float) -> np.ndarray:
    """Faster and higher (factors above 1) or slower and lower, as a tape does.

    It makes throats that the synthesizers do not have.
    """
    positions = np.arange(0, len(samples) - 1, factor)
    return np.interp(positions, np.arange(len(samples)), samples).astype(np.float32)


def as_heard(samples: np.ndarray, random_source: np.random.Generator) -> np.ndarray:
    """A user's recording as it comes from a microphone, without the room's noise."""
    if random_source.random() < 0.3:
        samples = band_limit(samples, random_source)
    if random_source.random() < 0.3:
        samples = reverberate(samples, random_source)
    gain = decibels(random_source.uniform(-12, 6))
    return np.clip(samples * gain, -1, 1).astype(np.float32)


def room(length: int, random_source: np.random.Generator) -> np.ndarray:
    """What a microphone hears when nobody speaks: digital silence, or noise of some level."""
    if random_source.random() < 0.35:
        return np.zeros(length, np.float32)
    return noise(length, random_source) * decibels(random_source.uniform(-75, -38))
