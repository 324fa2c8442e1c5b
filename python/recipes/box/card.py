"""The model card, from the list of questions and the measured results."""

from __future__ import annotations

import json
from pathlib import Path

import phrases
import voices

HEAD = """---
license: mit
language: en
pipeline_tag: audio-to-audio
---

# The model in the box

A small full-duplex speech model in the layout of Kyutai's Moshi: a Mimi codec of 2.7 million parameters and an
RQ-Transformer of 4.7 million, in bf16. It listens and speaks at the same time, 80 ms by 80 ms, on one CPU core. It greets,
waits while it is spoken to, answers aloud with its inner monologue as text, is silent in silence, and stops when it is
interrupted. It was trained from nothing on synthetic speech by the recipe in `python/recipes/box`.

Its answers are sentences that it learnt by heart. It understands nothing beyond the questions below: to anything else it
says one of its sentences, or nothing. It is a first try of the engine, a fixture for tests and an example of the pipeline,
and no assistant. Its facts are common knowledge and were not checked further.

## What it can be asked

| question, in many phrasings | answer |
|---|---|
"""

TRAINING = """
At the start of a session it says "{greeting}" It was trained on a few more questions, whose answers it mistakes for others
too often to be listed: {unsure}.

## What it was trained on

Synthetic speech alone; no recording of a user and no text of anybody is in it.

| speech | from | licence |
|---|---|---|
| the box's voice, and a fifth of the questions | Piper, voice `en_US-joe-medium` | data set CC0, fine-tuned from the voice `lessac`: see below |
| users' voices | espeak-ng 1.51: {variants} variants in {accents} accents | program GPL-3.0; run as a program, nothing of it is here |
| users' voices | flite 2.2: {flite} | BSD-like |

The voice `joe` began as the voice `lessac`, which was trained on the corpus of the
[Blizzard Challenge 2013](https://www.cstr.ed.ac.uk/projects/blizzard/2013/lessac_blizzard2013/). That corpus has a licence
of its own, which may restrict commercial use of voices made from it. The MIT licence of this checkpoint covers what its
authors can give; read the corpus's licence before you sell anything with this voice.

Rooms, microphones, noise, tempo, pitch, echo of its own voice and interruptions were added by the recipe. Whisper tiny.en
(MIT) timed the words of its answers and chose among several renditions of each.

{course}

The voice is a synthesizer's. It must not be presented as a person's.

## Measured

On recordings that training did not have: {held_out}. Half of the questions are in phrasings that
training did not have, three quarters of those in the words of others, who had not seen the phrasings of training.
Greedy decoding, through `moshi_rs`, by the command below; without options a session samples at the temperatures of
`config.json`, and says other words now and then.

```sh
python python/recipes/box/run.py evaluate --work box-work
```
<!-- not run: needs the environment of the recipe -->

| what | result |
|---|---|
"""

HELD_OUT = (
    "{variants} other espeak-ng variants; the flite voices and Piper's, which training has; with noise, reverberation and "
    "other levels"
)


def write(checkpoint: Path, report: Path, course: str) -> None:
    """Writes `README.md` into the checkpoint from `evaluation.json`; `course` tells of its training."""
    results = json.loads(report.read_text())
    rows = [f"| {phrases.plain(question)} | {question.answer} |" for question in phrases.LISTED]
    table = [
        f"| {name} | {value if not isinstance(value, list) else ', '.join(map(str, value))} |"
        for name, value in results.items()
        if name not in ("answers", "said in silence and noise")
    ]
    text = HEAD + "\n".join(rows) + "\n"
    unsure = [phrases.plain(q) for q in phrases.QUESTIONS if q.name in phrases.UNSURE]
    text += (
        TRAINING.format(
            unsure="; ".join(unsure),
            greeting=phrases.GREETING,
            held_out=HELD_OUT.format(variants=len(voices.variants(held_out=True))),
            variants=len(voices.variants(held_out=False)),
            accents=len(set(voices.ESPEAK_ACCENTS)),
            flite=", ".join(voices.FLITE_VOICES),
            course=course,
        )
        + "\n".join(table)
        + "\n"
    )
    (checkpoint / "README.md").write_text(text)
