"""Conversations: a user's channel of sound, and the box's own of codes and words.

A conversation is a row of frames of 80 ms. The own channel is made of ready pieces: each answer is
encoded once, with silence before and after, and put at a frame. The user's is mixed as sound and
encoded whole.
"""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

import augment
import corpus
import phrases
import shapes
import tokenizer

if TYPE_CHECKING:
    from torch import nn

DIALOGUE_FRAMES = 400
GREETING_FRAME = 6
# From the frame in which the user's last sound ends to the first of the answer: half a second.
REACTION_FRAMES = 6
# Frames until the box is silent once it is interrupted.
YIELD_FRAMES = 5
# Silence that follows an answer in its codes, so that its last sounds are in them.
TAIL_FRAMES = 4
LEAD_FRAMES = 40
# Questions that the box's own voice puts.
OWN_VOICE_SHARE = 0.2
HURRIED_SHARE = 0.6
GREETING = len(phrases.QUESTIONS)
NOBODY = GREETING + 1


@dataclass
class Answer:
    """What the box says to one question.

    Its samples, its codes `[8, frames]` and its text tokens `[frames]`.
    """

    samples: np.ndarray
    codes: np.ndarray
    tokens: np.ndarray
    # Codes of it when it breaks off, by the number of frames that are heard.
    cuts: dict[int, np.ndarray] = dataclasses.field(default_factory=dict)

    @property
    def spoken_frames(self) -> int:
        """Frames with speech, without the silence at the end."""
        return len(self.tokens) - TAIL_FRAMES


@dataclass
class Turn:
    """A question that was put: the frame in which it ends, its number, and its words."""

    end: int
    question: int
    text: str


@dataclass
class Dialogue:
    """A conversation; `speaker` has per frame what the box says or is about to say."""

    user: np.ndarray
    tokens: np.ndarray
    own: np.ndarray
    speaker: np.ndarray
    turns: list[Turn]


def encode(codec: nn.Module, samples: np.ndarray) -> np.ndarray:
    """Codes `[batch, 8, frames]` of waveforms `[batch, samples]`, a whole number of frames long."""
    import torch

    device = next(codec.parameters()).device
    with torch.no_grad():
        codes = codec.encode(torch.from_numpy(samples).to(device)[:, None])
    return np.asarray(codes.cpu().numpy().astype(np.uint8))


class Composer:
    """Puts conversations together."""

    def __init__(
        self,
        codec: nn.Module,
        answers: list[Answer],
        questions: list[list[corpus.Utterance]],
        own_questions: list[list[corpus.Utterance]],
        seed: list[int],
    ) -> None:
        self.codec, self.answers = codec, answers
        self.questions, self.own_questions = questions, own_questions
        self.random = np.random.default_rng(seed)
        silence = np.zeros((1, 100 * shapes.FRAME_SIZE), np.float32)
        self.silence = encode(codec, silence)[0]

    def _own_silence(self, frames: int) -> np.ndarray:
        return np.repeat(self.silence[:, -1:], frames, axis=1)

    def _cut(self, answer: Answer, frames: int) -> np.ndarray:
        """Codes of an answer that breaks off: `frames` of it, the last one fading, then silence."""
        if frames in answer.cuts:
            return answer.cuts[frames]
        samples = np.zeros((LEAD_FRAMES + frames + TAIL_FRAMES) * shapes.FRAME_SIZE, np.float32)
        start, length = LEAD_FRAMES * shapes.FRAME_SIZE, frames * shapes.FRAME_SIZE
        spoken = answer.samples[:length].copy()
        spoken[-shapes.FRAME_SIZE :] *= np.linspace(1, 0, shapes.FRAME_SIZE, dtype=np.float32)[
            -len(spoken[-shapes.FRAME_SIZE :]) :
        ]
        samples[start : start + len(spoken)] = spoken
        answer.cuts[frames] = encode(self.codec, samples[None])[0][:, LEAD_FRAMES:]
        return answer.cuts[frames]

    def compose(self) -> Dialogue:
        """One conversation, drawn at random."""
        rng, size = self.random, shapes.FRAME_SIZE
        frames = DIALOGUE_FRAMES
        user = np.zeros(frames * size, np.float32)
        own_samples = np.zeros(frames * size, np.float32)
        own = self._own_silence(frames)
        tokens = np.full(frames, tokenizer.PADDING, np.int64)
        speaker = np.full(frames, NOBODY, np.int64)
        turns: list[Turn] = []

        def speak(number: int, at: int, until: int | None = None) -> None:
            """Puts an answer at a frame, cut so that it ends at another."""
            answer = self.answers[number]
            if until is not None and until - at < answer.spoken_frames:
                kept = until - at
                codes, text = self._cut(answer, kept), answer.tokens[:kept].copy()
                if text[-1] == tokenizer.END_OF_PADDING:
                    # No word follows.
                    text[-1] = tokenizer.PADDING
                sound = answer.samples[: kept * size]
            else:
                codes, text, sound = answer.codes, answer.tokens, answer.samples
            end = min(frames, at + codes.shape[1])
            own[:, at:end] = codes[:, : end - at]
            text = text[: max(0, frames - at)]
            tokens[at : at + len(text)] = text
            if text[0] != tokenizer.PADDING and tokens[at - 1] == tokenizer.PADDING:
                tokens[at - 1] = tokenizer.END_OF_PADDING
            sound = sound[: max(0, frames - at) * size]
            own_samples[at * size : at * size + len(sound)] = sound
            speaker[at:end] = number

        same_voice = rng.random() < 0.3
        # Those who let nobody finish put twice as many questions.
        hurried = rng.random() < HURRIED_SHARE
        kind = rng.random()
        # The box greets first, unless the user is faster.
        greets = kind < 0.85
        pending = (GREETING, GREETING_FRAME) if greets else None
        # Some greet and then have nobody to talk to.
        alone = kind < 0.1
        if alone:
            speak(GREETING, GREETING_FRAME)
        voice = None
        while not alone:
            number = int(rng.integers(len(self.questions)))
            by_own_voice = rng.random() < OWN_VOICE_SHARE
            candidates = (self.own_questions if by_own_voice else self.questions)[number]
            if same_voice and voice is not None:
                candidates = [u for u in candidates if u.voice == voice] or candidates
            utterance = candidates[rng.integers(len(candidates))]
            voice = utterance.voice
            sound = utterance.samples
            if rng.random() < 0.7:
                sound = augment.warp(sound, rng.uniform(0.85, 1.18))
            sound = augment.as_heard(sound, rng)
            interrupts = pending is not None and rng.random() < (0.8 if hurried else 0.22)
            if pending is not None:
                answer, at = pending
                spoken = self.answers[answer].spoken_frames
                if interrupts:
                    latest = min(9.0, spoken - 6.0) if hurried else spoken - 6.0
                    onset = at + rng.uniform(3, max(4.0, latest))
                else:
                    gap = rng.uniform(0.3, 2.5) if rng.random() < 0.8 else rng.uniform(2.5, 10.0)
                    onset = at + spoken + gap * shapes.FRAME_RATE
            else:
                onset = rng.uniform(0.5, GREETING_FRAME - 1)
            start = int(onset * size)
            if start + len(sound) + 12 * size > len(user):
                if pending is not None:
                    speak(pending[0], pending[1])
                break
            user[start : start + len(sound)] += sound
            if pending is not None:
                speak(
                    pending[0],
                    pending[1],
                    until=int(onset) + YIELD_FRAMES + 1 if interrupts else None,
                )
            loud = np.flatnonzero(np.abs(sound) > 0.03 * np.abs(sound).max())
            end = (start + int(loud[-1])) // size
            at = end + REACTION_FRAMES
            turns.append(Turn(end, number, utterance.text))
            speaker[end:at] = number
            pending = (number, at)
        self._surround(user, own_samples)
        return Dialogue(np.clip(user, -1, 1), tokens, own, speaker, turns)

    def _surround(self, user: np.ndarray, own: np.ndarray) -> None:
        """Adds to the user's channel the room's noise, bursts of it, and the box's own echo."""
        rng = self.random
        if rng.random() < 0.7:
            user += augment.noise(len(user), rng) * augment.decibels(rng.uniform(-75, -34))
        for _ in range(int(rng.integers(0, 4)) if rng.random() < 0.4 else 0):
            length = int(rng.uniform(0.02, 0.8) * shapes.SAMPLE_RATE)
            start = int(rng.integers(0, len(user) - length))
            shape = (
                np.hanning(length)
                if rng.random() < 0.5
                else np.exp(-np.arange(length) / (0.1 * length))
            )
            user[start : start + length] += (
                augment.noise(length, rng) * shape * augment.decibels(rng.uniform(-45, -16))
            ).astype(np.float32)
        if rng.random() < 0.35:
            # The box hears itself after it has spoken, a frame later at the least.
            delay = int(rng.uniform(0.08, 0.45) * shapes.SAMPLE_RATE)
            echo = augment.band_limit(own, rng) * augment.decibels(rng.uniform(-40, -12))
            user[delay:] += echo[: len(user) - delay]


@dataclass
class Batch:
    """Conversations as tokens.

    Text and speaker are `[n, frames]`, the own and the user's codes `[n, 8, frames]`.
    """

    tokens: np.ndarray
    own: np.ndarray
    user: np.ndarray
    speaker: np.ndarray
    turns: list[list[Turn]]

    def save(self, path: Path) -> None:
        """Writes it whole or not at all."""
        turns = json.dumps([[dataclasses.astuple(turn) for turn in row] for row in self.turns])
        partial = path.with_suffix(".partial.npz")
        np.savez_compressed(
            partial,
            tokens=self.tokens.astype(np.int16),
            own=self.own,
            user=self.user,
            speaker=self.speaker.astype(np.uint8),
            turns=np.frombuffer(turns.encode(), np.uint8),
        )
        partial.rename(path)

    @staticmethod
    def load(path: Path) -> Batch:
        """Reads what `save` wrote."""
        with np.load(path) as file:
            turns = [[Turn(*turn) for turn in row] for row in json.loads(file["turns"].tobytes())]
            return Batch(
                file["tokens"].astype(np.int64),
                file["own"],
                file["user"],
                file["speaker"].astype(np.int64),
                turns,
            )


def shards_of(process: int, processes: int, shards: int, files: int) -> list[tuple[int, int]]:
    """Numbers of the shards that a process makes, each with that of its file of recordings.

    Neighbouring shards share a file, whatever the number of processes, and no two processes do.
    """
    files = min(files, shards)
    pairs = [(shard, shard * files // shards) for shard in range(shards)]
    return [(shard, number) for shard, number in pairs if number % processes == process]


def batch_of(composer: Composer, count: int) -> Batch:
    """That many conversations."""
    made = [composer.compose() for _ in range(count)]
    users = np.concatenate(
        [
            encode(composer.codec, np.stack([d.user for d in made[i : i + 4]]))
            for i in range(0, count, 4)
        ]
    )
    return Batch(
        np.stack([d.tokens for d in made]),
        np.stack([d.own for d in made]),
        users,
        np.stack([d.speaker for d in made]),
        [d.turns for d in made],
    )


def load_codec(path: Path, device: str = "cpu") -> nn.Module:
    """The codec from the exported file, as every engine has it."""
    import torch
    from moshi.models import loaders
    from torch import nn

    # On a GPU it would give other codes now and then.
    torch.backends.cudnn.allow_tf32 = False
    codec = loaders.get_mimi(path, shapes.CODEC, device, num_codebooks=shapes.CODEBOOKS)
    assert isinstance(codec, nn.Module)
    return codec.eval()
