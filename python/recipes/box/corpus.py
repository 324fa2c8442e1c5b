"""Recordings of many voices and of the box's own, with what is said in them."""

from __future__ import annotations

import json
import random
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np

import phrases
import voices

# Voices differ in loudness; every recording is brought to this level before anything else.
SPEECH_RMS = 0.08


@dataclass
class Utterance:
    """A recording and what is said in it.

    `phones` are flite's; `ends` has the second at which each of them ends where the synthesizer
    told, and is empty otherwise. `question` names the one that is put, if one is.
    """

    samples: np.ndarray
    text: str
    voice: str
    phones: list[str]
    ends: list[float]
    question: str = ""


def level(samples: np.ndarray, rms: float = SPEECH_RMS) -> np.ndarray:
    """The recording at a level, with peaks kept below 0.95."""
    loud = samples[np.abs(samples) > 0.02 * max(float(np.abs(samples).max(initial=0.0)), 1e-6)]
    if len(loud) == 0:
        return samples
    gain = rms / float(np.sqrt(np.mean(loud**2)))
    return (samples * min(gain, 0.95 / float(np.abs(samples).max()))).astype(np.float32)


def say(job: tuple[str, voices.Voice], with_phones: bool = True) -> Utterance:
    """A user's recording of a text in a voice (espeak-ng and flite)."""
    text, voice = job
    if not with_phones:
        speech = (
            voices.flite(text, voice)[0] if voice.program == "flite" else voices.espeak(text, voice)
        )
        return Utterance(level(voices.trim(speech)), text, f"{voice.program} {voice.name}", [], [])
    if voice.program == "flite":
        samples, timed = voices.flite(text, voice)
        if voice.name == "kal":
            # Its sound starts before the time that is told.
            return Utterance(level(samples), text, "flite kal", [p for p, _ in timed], [])
        # Kept untrimmed: the times count from its start.
        return Utterance(
            level(samples),
            text,
            f"flite {voice.name}",
            [p for p, _ in timed],
            [e for _, e in timed],
        )
    samples = voices.trim(voices.espeak(text, voice))
    return Utterance(level(samples), text, f"espeak-ng {voice.name}", voices.phones_of(text), [])


def own_voice(
    texts: list[str], speed: float = 1.0, noise: float | None = None, with_phones: bool = True
) -> list[Utterance]:
    """Recordings by the voice that the box answers with."""
    spoken = [level(voices.trim(samples)) for samples in voices.piper(texts, speed, noise)]
    return [
        Utterance(s, t, "piper joe", voices.phones_of(t) if with_phones else [], [])
        for s, t in zip(spoken, texts, strict=True)
    ]


def save(path: Path, utterances: list[Utterance]) -> None:
    """Writes recordings as 16-bit samples with their texts."""
    facts = [
        {
            "text": u.text,
            "voice": u.voice,
            "phones": u.phones,
            "ends": u.ends,
            "question": u.question,
            "length": len(u.samples),
        }
        for u in utterances
    ]
    samples = np.concatenate([np.round(u.samples * 32767).astype(np.int16) for u in utterances])
    partial = path.with_suffix(".partial.npz")
    np.savez(partial, samples=samples, facts=np.frombuffer(json.dumps(facts).encode(), np.uint8))
    partial.rename(path)


def save_questions(
    path: Path,
    utterances: list[Utterance],
    questions: tuple[phrases.Question, ...] = phrases.QUESTIONS,
) -> None:
    """Writes recordings of the questions in turn, with the name of each."""
    for utterance, question in zip(utterances, _in_turn(len(utterances), questions), strict=True):
        utterance.question = question.name
    save(path, utterances)


def load(path: Path) -> list[Utterance]:
    """Reads what `save` wrote."""
    with np.load(path) as file:
        samples, facts = file["samples"], json.loads(file["facts"].tobytes())
    found, start = [], 0
    for fact in facts:
        end = start + fact["length"]
        found.append(
            Utterance(
                samples[start:end].astype(np.float32) / 32767,
                fact["text"],
                fact["voice"],
                fact["phones"],
                fact["ends"],
                fact["question"],
            )
        )
        start = end
    return found


def load_questions(
    path: Path, questions: tuple[phrases.Question, ...] = phrases.QUESTIONS
) -> list[Utterance]:
    """Reads recordings of the questions in turn.

    Raises:
        ValueError: The questions are no longer those that were recorded.
    """
    recordings = load(path)
    if [u.question for u in recordings] != [q.name for q in _in_turn(len(recordings), questions)]:
        raise ValueError(f"{path} was made from another list of questions: delete it")
    return recordings


def build(folder: Path, users: int, seed: int) -> None:
    """Writes what the codec is trained on, `users.npz` and `own.npz`, unless they exist."""
    random_source = random.Random(seed)
    if not (folder / "own.npz").exists():
        texts = [question.answer for question in phrases.QUESTIONS] + [phrases.GREETING]
        lines = [
            phrases.expand(random_source.choice(question.trained), random_source)
            for question in phrases.QUESTIONS
            for _ in range(4)
        ]
        rows = [phrases.chatter(random_source, 4, 9) for _ in range(150)]
        own = (
            own_voice(texts)
            + own_voice(texts, speed=1.05, noise=0.4)
            + own_voice(texts, speed=0.95)
        )
        save(folder / "own.npz", own + own_voice(lines) + own_voice(rows))
    if not (folder / "users.npz").exists():
        jobs = []
        for _ in range(users):
            voice = voices.draw_user_voice(random_source)
            text = (
                phrases.ask(random_source.choice(phrases.QUESTIONS), random_source)
                if random_source.random() < 0.5
                else phrases.chatter(random_source)
            )
            jobs.append((text, voice))
        with ThreadPoolExecutor(2) as pool:
            save(folder / "users.npz", list(pool.map(say, jobs)))


def questions(path: Path, count: int, seed: int) -> None:
    """Writes recordings of the questions in turn: the number of each is its place modulo the list.

    By espeak-ng and flite, in voices and phrasings for training.
    """
    if path.exists():
        return
    random_source = random.Random(seed)
    jobs = [
        (phrases.ask_in_passing(question, random_source), voices.draw_user_voice(random_source))
        for question in _in_turn(count)
    ]
    save_questions(path, _say_all(jobs))


def own_questions(path: Path, count: int, seed: int) -> None:
    """Writes recordings of the questions in turn by Piper's voice, at many speeds."""
    if path.exists():
        return
    random_source = random.Random(seed)
    texts = [phrases.ask_in_passing(question, random_source) for question in _in_turn(count)]
    made = []
    for group in range(0, count, 40):
        speed, noise = random_source.uniform(0.8, 1.25), random_source.choice([None, 0.4, 0.8])
        made += own_voice(texts[group : group + 40], speed, noise, with_phones=False)
    save_questions(path, made)


def held_out(path: Path, count: int, seed: int) -> None:
    """Writes recordings of the listed questions in turn to measure with.

    Their phrasings are kept from training in every second round; for voices see `voices`.
    """
    if path.exists():
        return
    random_source = random.Random(seed)
    jobs = []
    for place, question in enumerate(_in_turn(count, phrases.LISTED)):
        fresh = place // len(phrases.LISTED) % 2 == 1
        text = (phrases.ask_held_out if fresh else phrases.ask)(question, random_source)
        jobs.append((text, voices.draw_held_out_voice(random_source)))
    by_piper = [place for place, (_, voice) in enumerate(jobs) if voice.program == "piper"]
    others = [place for place in range(count) if place not in set(by_piper)]
    spoken = [
        utterance
        for place in by_piper
        for utterance in own_voice(
            [jobs[place][0]], speed=random_source.uniform(0.85, 1.15), with_phones=False
        )
    ]
    made = dict(zip(by_piper, spoken, strict=True))
    made.update(zip(others, _say_all([jobs[place] for place in others]), strict=True))
    save_questions(path, [made[place] for place in range(count)], phrases.LISTED)


def _in_turn(
    count: int, questions: tuple[phrases.Question, ...] = phrases.QUESTIONS
) -> list[phrases.Question]:
    return [questions[place % len(questions)] for place in range(count)]


def _say_all(jobs: list[tuple[str, voices.Voice]]) -> list[Utterance]:
    with ThreadPoolExecutor(2) as pool:
        return list(pool.map(lambda job: say(job, with_phones=False), jobs))


def own_held_out(path: Path, seed: int) -> None:
    """Writes lines of the box's voice that no other recording has, to measure the codec with."""
    if not path.exists():
        random_source = random.Random(seed)
        drawn = random_source.sample(phrases.QUESTIONS, 20)
        save(path, own_voice([phrases.ask_held_out(question, random_source) for question in drawn]))
