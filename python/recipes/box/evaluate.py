"""What the box can do, measured with the engine on recordings that training did not have.

Everything is run greedily through `moshi_rs`; what is said is judged by its inner monologue and by
Whisper.
"""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

import augment
import corpus
import judge
import phrases
import shapes

if TYPE_CHECKING:
    import moshi_rs

SIZE = shapes.FRAME_SIZE
# The user speaks after the greeting.
FIRST_QUESTION_S = 3.6
LISTEN_S = 6.0
AUDIBLE = 0.01


def _seconds(duration: float) -> int:
    """Whole frames of a duration, as samples."""
    return int(np.ceil(duration * shapes.FRAME_RATE)) * SIZE


def converse(
    model: moshi_rs.StreamingModel, channels: list[np.ndarray], group: int = 8
) -> tuple[list[np.ndarray], list[list[str]]]:
    """The box's sound and its text of each frame for users' channels; several sessions at once."""
    import moshi_rs

    sounds, texts = [], []
    for start in range(0, len(channels), group):
        part = channels[start : start + group]
        length = max(len(channel) for channel in part)
        padded = [
            np.pad(channel, (0, length - len(channel))).astype(np.float32) for channel in part
        ]
        sessions = [model.new_session(seed=1, temperature=0.0, text_temperature=0.0) for _ in part]
        steps = [
            moshi_rs.step_batch(sessions, [channel[at : at + SIZE] for channel in padded])
            for at in range(0, length, SIZE)
        ]
        for row, channel in enumerate(part):
            count = len(channel) // SIZE
            sounds.append(np.concatenate([step[row][0] for step in steps[:count]]))
            texts.append([step[row][1] for step in steps[:count]])
    return sounds, texts


def text_after(texts: list[str], sample: int) -> str:
    """What was said from a sample on."""
    return "".join(texts[sample // SIZE :]).strip()


def mixed(
    utterance: corpus.Utterance, before_s: float, after_s: float, rng: np.random.Generator
) -> tuple[np.ndarray, int]:
    """A user's channel with one question in a noisy room, and the sample at which it ends."""
    sound = augment.as_heard(utterance.samples, rng)
    channel = np.zeros(_seconds(before_s + len(sound) / shapes.SAMPLE_RATE + after_s), np.float32)
    start = int(before_s * shapes.SAMPLE_RATE)
    channel[start : start + len(sound)] = sound
    if rng.random() < 0.7:
        channel += augment.noise(len(channel), rng) * augment.decibels(rng.uniform(-65, -36))
    loud = np.flatnonzero(np.abs(sound) > 0.03 * np.abs(sound).max())
    return np.clip(channel, -1, 1), start + int(loud[-1])


def _share(right: list[bool]) -> float:
    return round(float(np.mean(right)), 3) if right else 0.0


def questions(
    model: moshi_rs.StreamingModel,
    recordings: list[corpus.Utterance],
    rng: np.random.Generator,
    judged: int,
) -> dict[str, Any]:
    """Answers to held-out recordings; `judged` of them are read by Whisper too."""
    channels, ends = zip(
        *(mixed(u, FIRST_QUESTION_S, LISTEN_S, rng) for u in recordings), strict=True
    )
    sounds, texts = converse(model, list(channels))
    count = len(phrases.LISTED)
    rows: list[dict[str, Any]] = []
    errors = words = 0
    reactions: list[float] = []
    greetings: list[bool] = []
    start = int(3.0 * shapes.SAMPLE_RATE)
    for place, (utterance, sound, text, end) in enumerate(
        zip(recordings, sounds, texts, ends, strict=True)
    ):
        answer, wanted = text_after(text, end), phrases.LISTED[place % count].answer
        rows.append(
            {
                "voice": utterance.voice,
                "asked": utterance.text,
                "wanted": wanted,
                "answer": answer,
                "new_phrasing": place // count % 2 == 1,
                "right": answer == wanted,
                "said_before": text_after(text, start)[: -len(answer) or None].strip(),
            }
        )
        # A frame of sound can be played once the user's frame of the same number has been heard.
        audible = np.flatnonzero(np.abs(sound[end:]) > AUDIBLE)
        waited = (float(audible[0]) + SIZE) / shapes.SAMPLE_RATE if len(audible) else LISTEN_S
        reactions.append(waited)
        greetings.append("".join(text[: int(3 * shapes.FRAME_RATE)]).strip() == phrases.GREETING)
    for place in np.linspace(0, len(rows) - 1, min(judged, len(rows))).astype(int):
        if rows[place]["answer"]:
            rows[place]["heard"] = judge.read(sounds[place][ends[place] :])
            wrong, length = judge.word_errors(rows[place]["answer"], rows[place]["heard"])
            errors, words = errors + wrong, words + length
    return {
        "answers right": _share([row["right"] for row in rows]),
        "answers right, trained phrasings": _share(
            [row["right"] for row in rows if not row["new_phrasing"]]
        ),
        "answers right, new phrasings": _share(
            [row["right"] for row in rows if row["new_phrasing"]]
        ),
        "answers right, new phrasings in others' words": _share(
            [
                row["right"]
                for row in rows
                if row["new_phrasing"] and row["asked"] in phrases.HELD_OUT_OF_OTHERS
            ]
        ),
        **{
            f"answers right, {program}": _share(
                [row["right"] for row in rows if row["voice"].startswith(program)]
            )
            for program in ("espeak-ng", "flite", "piper")
        },
        "recordings": len(rows),
        **{
            f"recordings, {program}": sum(row["voice"].startswith(program) for row in rows)
            for program in ("espeak-ng", "flite", "piper")
        },
        "spoke before the question's end": _share([bool(row["said_before"]) for row in rows]),
        "greeted within 3 s": _share(greetings),
        "word error rate of Whisper tiny.en on the spoken answers": round(
            errors / max(words, 1), 3
        ),
        "reaction s, median": round(float(np.median(reactions)), 2),
        "reaction s, 95 %": round(float(np.percentile(reactions, 95)), 2),
        "rows": rows,
    }


def quiet(
    model: moshi_rs.StreamingModel,
    rng: np.random.Generator,
    trials: int = 10,
    seconds: float = 63.0,
) -> dict[str, Any]:
    """A minute of silence and of noise after the greeting: in how many trials nothing is said."""
    start = int(3.0 * shapes.SAMPLE_RATE)
    silent: dict[str, list[bool]] = {"silence": [], "noise": []}
    said: list[str] = []
    channels: list[np.ndarray] = []
    for name in silent:
        for _ in range(trials):
            channel = np.zeros(_seconds(seconds), np.float32)
            if name == "noise":
                channel += augment.noise(len(channel), rng) * augment.decibels(
                    rng.uniform(-60, -34)
                )
            elif len(channels) % 2:
                channel += augment.noise(len(channel), rng) * augment.decibels(
                    rng.uniform(-90, -75)
                )
            channels.append(channel)
    sounds, texts = converse(model, channels)
    for place, (sound, text) in enumerate(zip(sounds, texts, strict=True)):
        spoken = text_after(text, start)
        name = "silence" if place < trials else "noise"
        silent[name].append(not spoken and float(np.abs(sound[start:]).max()) <= AUDIBLE)
        said.append(spoken)
    return {f"quiet in a minute of {name}": _share(right) for name, right in silent.items()} | {
        "said": said
    }


def interruptions(
    model: moshi_rs.StreamingModel,
    recordings: list[corpus.Utterance],
    rng: np.random.Generator,
    trials: int = 20,
) -> dict[str, Any]:
    """A second question in the middle of an answer.

    How soon the box is silent, and whether it answers that one.
    """
    count = len(phrases.LISTED)
    channels, onsets, wanted = [], [], []
    long_answers = [i for i in range(count) if len(phrases.LISTED[i].answer.split()) >= 8]
    for _ in range(trials):
        first = int(rng.choice(long_answers))
        second = int(rng.integers(count))
        channel, end = mixed(recordings[first], FIRST_QUESTION_S, 12.0, rng)
        sound = recordings[second + count * int(rng.integers(len(recordings) // count))].samples
        # The answer starts after half a second; about a second of it is heard.
        onset = end + int(rng.uniform(1.2, 1.8) * shapes.SAMPLE_RATE)
        channel[onset : onset + len(sound)] += sound
        channels.append(channel)
        onsets.append((onset, onset + len(sound)))
        wanted.append(phrases.LISTED[second].answer)
    sounds, texts = converse(model, channels)
    times: list[float] = []
    answered: list[bool] = []
    for sound, text, (onset, end), answer in zip(sounds, texts, onsets, wanted, strict=True):
        answered.append(text_after(text, end) == answer)
        if not (np.abs(sound[onset - 2 * SIZE : onset + SIZE]) > AUDIBLE).any():
            # It was not speaking: nothing to yield.
            continue
        heard = np.flatnonzero(np.abs(sound[onset : end + SIZE]) > AUDIBLE)
        times.append((float(heard[-1]) + SIZE) / shapes.SAMPLE_RATE if len(heard) else 0.0)
    return {
        "yields within 1 s": _share([t <= 1.0 for t in times]),
        "yield s, median": round(float(np.median(times)), 2) if times else "never spoke",
        "interruptions while it spoke": len(times),
        "answers the question that interrupts": _share(answered),
    }


def echoes(
    model: moshi_rs.StreamingModel,
    recordings: list[corpus.Utterance],
    rng: np.random.Generator,
    trials: int = 20,
) -> dict[str, Any]:
    """A question to a box that hears itself, as through loudspeakers.

    In how many trials it says one whole answer, whichever, and nothing more.
    """
    import moshi_rs

    answers = {question.answer for question in phrases.QUESTIONS}
    sessions: list[moshi_rs.Session] = []
    users, ends, delays, gains = [], [], [], []
    for recording in recordings[: trials * 7 : 7]:
        user, end = mixed(recording, FIRST_QUESTION_S, 2 * LISTEN_S, rng)
        sessions.append(model.new_session(seed=1, temperature=0.0, text_temperature=0.0))
        users.append(user)
        ends.append(end)
        delays.append(int(rng.uniform(0.08, 0.4) * shapes.SAMPLE_RATE))
        gains.append(augment.decibels(rng.uniform(-30, -12)))
    length = max(map(len, users))
    users = [np.pad(user, (0, length - len(user))) for user in users]
    echo = [np.zeros(length + shapes.SAMPLE_RATE, np.float32) for _ in users]
    texts: list[list[str]] = [[] for _ in users]
    for at in range(0, length, SIZE):
        heard = [
            np.clip(user[at : at + SIZE] + back[at : at + SIZE], -1, 1)
            for user, back in zip(users, echo, strict=True)
        ]
        for row, (sound, text) in enumerate(moshi_rs.step_batch(sessions, heard)):
            start = at + delays[row]
            echo[row][start : start + SIZE] = gains[row] * sound
            texts[row].append(text)
    return {
        "one answer and no more, hearing itself": _share(
            [text_after(text, end) in answers for text, end in zip(texts, ends, strict=True)]
        )
    }


def codec(
    checkpoint: Path, own: list[corpus.Utterance], others: list[corpus.Utterance]
) -> dict[str, Any]:
    """Whisper on re-synthesised speech, distance of spectra, and how many codes are in use."""
    import moshi_rs

    mimi = moshi_rs.Mimi.load(checkpoint)
    result: dict[str, Any] = {}
    used: list[np.ndarray] = []
    for name, utterances in (
        ("own voice", own),
        ("users, against the original as Whisper reads it", others),
    ):
        errors = words = 0
        distances = []
        for utterance in utterances:
            samples = np.pad(utterance.samples, (0, -len(utterance.samples) % SIZE))
            codes = mimi.encode(samples)
            made = mimi.decode(codes)[: len(samples)]
            used.append(codes)
            wrong, length = judge.word_errors(
                judge.read(samples) if name != "own voice" else utterance.text, judge.read(made)
            )
            errors, words = errors + wrong, words + length
            distances.append(log_spectral_distance(made, samples))
        result[f"codec, word error rate, {name}"] = round(errors / max(words, 1), 3)
        result[f"codec, log-spectral distance dB, {name}"] = round(float(np.mean(distances)), 2)
    codes = np.concatenate(used, axis=1)
    result["codec, codes in use of each book"] = [len(np.unique(row)) for row in codes]
    return result


def log_spectral_distance(a: np.ndarray, b: np.ndarray) -> float:
    """Difference of log spectra above a floor of -60 dB.

    Its root mean square over frequency, averaged over time.
    """
    window = np.hanning(512)

    def spectrum(x: np.ndarray) -> np.ndarray:
        frames = np.lib.stride_tricks.sliding_window_view(x, 512)[::128] * window
        return 20 * np.log10(
            np.maximum(np.abs(np.fft.rfft(frames)), 1e-3 * 512 * corpus.SPEECH_RMS)
        )

    length = min(len(a), len(b))
    return float(np.sqrt(((spectrum(a[:length]) - spectrum(b[:length])) ** 2).mean(1)).mean())


def speed(model: moshi_rs.StreamingModel) -> float:
    """Seconds of work per second of sound, one session."""
    session = model.new_session(seed=1)
    silence = np.zeros(SIZE, np.float32)
    for _ in range(50):
        session.step(silence)
    began = time.process_time()
    for _ in range(250):
        session.step(silence)
    return round((time.process_time() - began) / (250 * 0.08), 3)


def parity(checkpoint: Path, channels: list[np.ndarray]) -> bool:
    """Whether the PyTorch original says the same in f32, given the same files and sound."""
    import torch
    from moshi.models import LMGen, loaders

    import lm
    import moshi_rs
    import tokenizer

    config = json.loads((checkpoint / "config.json").read_text())
    pieces = tokenizer.train(checkpoint / "tokenizer.model")
    model = lm.new_model(config["text_card"], checkpoint / "model.safetensors").eval()
    mimi = loaders.get_mimi(
        checkpoint / "mimi.safetensors", shapes.CODEC, num_codebooks=shapes.CODEBOOKS
    )
    engine = moshi_rs.StreamingModel.load(checkpoint, dtype="f32")
    _, texts = converse(engine, channels)
    for channel, said in zip(channels, texts, strict=True):
        generator, tokens = LMGen(model, use_sampling=False), []
        with torch.no_grad(), generator.streaming(1), mimi.streaming(1):
            generator.step(torch.zeros(1, shapes.CODEBOOKS, 1, dtype=torch.long))
            for at in range(0, len(channel), SIZE):
                codes = mimi.encode(torch.from_numpy(channel[at : at + SIZE])[None, None])
                out = generator.step(codes)
                if out is not None:
                    tokens.append(int(out[0, 0, 0]))
        text = "".join(said).strip()
        if not text or lm.spoken_text(np.array(tokens), pieces) != text:
            return False
    return True


def run(checkpoint: Path, folder: Path, seed: int = 5, judged: int = 40) -> dict[str, Any]:
    """The whole evaluation; also written to `evaluation.json` in the folder."""
    import moshi_rs

    rng = np.random.default_rng(seed)
    recordings = corpus.load_questions(folder / "final.npz", phrases.LISTED)
    own = corpus.load(folder / "own_held_out.npz")
    model = moshi_rs.StreamingModel.load(checkpoint)
    report: dict[str, Any] = questions(model, recordings, rng, judged)
    rows = report.pop("rows")
    silence = quiet(model, rng)
    said = silence.pop("said")
    report |= silence | interruptions(model, recordings, rng)
    report |= echoes(model, recordings, rng)
    report |= codec(checkpoint, own, recordings[::8])
    report["real-time factor, one core"] = speed(model)
    channels = [
        mixed(recordings[i], FIRST_QUESTION_S, LISTEN_S, rng)[0]
        for i in range(0, len(recordings), 23)
    ]
    report["PyTorch says the same, recordings"] = (
        len(channels) if parity(checkpoint, channels) else 0
    )
    details = report | {"answers": rows, "said in silence and noise": said}
    (folder / "evaluation.json").write_text(json.dumps(details, indent=1) + "\n")
    for name, value in report.items():
        print(f"{name}: {value}", flush=True)
    return report
