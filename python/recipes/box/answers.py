"""The box's own lines: spoken, encoded, and their words placed in time."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

import corpus
import dialogues
import judge
import phrases
import shapes
import tokenizer

# Piper draws every recording anew: speed and noise of those to choose from, best first.
RENDITIONS = ((1.0, None), (0.95, 0.5), (1.0, 0.4), (0.9, None), (0.92, 0.3), (0.85, 0.5))


def lines() -> list[str]:
    """All that the box says: an answer to each question, then the greeting."""
    return [question.answer for question in phrases.QUESTIONS] + [phrases.GREETING]


def resynthesise(codec: nn.Module, samples: np.ndarray) -> np.ndarray:
    """The samples after the codec, as long as they were."""
    size = shapes.FRAME_SIZE
    padded = np.pad(samples, (0, -len(samples) % size + size))
    with torch.no_grad():
        codes = codec.encode(torch.from_numpy(padded)[None, None])
        return codec.decode(codes)[0, 0].numpy()[: len(samples)]


def record(path: Path, codec: nn.Module) -> None:
    """Records every line in some renditions and keeps the one that the judge reads best.

    It judges what the codec makes of them; the first that it reads right is taken.
    """
    if path.exists():
        return
    texts = lines()
    best: dict[str, tuple[int, corpus.Utterance]] = {}
    for speed, noise in RENDITIONS:
        left = [text for text in texts if best.get(text, (1,))[0] > 0]
        if not left:
            break
        for utterance in corpus.own_voice(left, speed, noise):
            errors, _ = judge.word_errors(
                utterance.text, judge.read(resynthesise(codec, utterance.samples))
            )
            if utterance.text not in best or errors < best[utterance.text][0]:
                best[utterance.text] = (errors, utterance)
        right = sum(errors == 0 for errors, _ in best.values())
        print(f"answers: {right} of {len(texts)} read right", flush=True)
    corpus.save(path, [best[text][1] for text in texts])


def word_starts(path: Path, utterances: list[corpus.Utterance]) -> list[list[float]]:
    """The seconds at which the words of the lines start; kept in a file beside theirs.

    Raises:
        ValueError: The recordings are of other lines than the box has.
    """
    if [u.text for u in utterances] != lines():
        raise ValueError(f"{path} has other lines than the box: delete it")
    kept_path, made_from = path.with_suffix(".words.json"), _fingerprint(path)
    if kept_path.exists():
        kept: dict[str, Any] = json.loads(kept_path.read_text())
        if kept["made_from"] == made_from:
            return list(kept["starts"])
    starts = [[start for _, start in judge.word_starts(u.samples, u.text)] for u in utterances]
    partial = kept_path.with_suffix(".partial")
    partial.write_text(json.dumps({"made_from": made_from, "starts": starts}))
    partial.rename(kept_path)
    return starts


def _fingerprint(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def load(path: Path, codec: nn.Module, pieces: tokenizer.Tokenizer) -> list[dialogues.Answer]:
    """The recorded lines with codes and tokens: one for each question, then the greeting."""
    size, found = shapes.FRAME_SIZE, []
    utterances = corpus.load(path)
    for utterance, starts in zip(utterances, word_starts(path, utterances), strict=True):
        frames = -(-len(utterance.samples) // size) + dialogues.TAIL_FRAMES
        samples = np.zeros((dialogues.LEAD_FRAMES + frames) * size, np.float32)
        at = dialogues.LEAD_FRAMES * size
        samples[at : at + len(utterance.samples)] = utterance.samples
        codes = dialogues.encode(codec, samples[None])[0][:, dialogues.LEAD_FRAMES :]
        words = list(zip(utterance.text.split(), starts, strict=True))
        found.append(
            dialogues.Answer(utterance.samples, codes, tokenizer.place_words(words, frames, pieces))
        )
    return found
