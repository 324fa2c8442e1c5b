"""Training of the language model on conversations.

Teacher forcing with the official model. Two things help it to hear: heads that are dropped after
training tell which question was put and which words it had, and parts of what the model hears, and
of what it said before, are hidden or falsified at random, so that it must not lean on any one of
them.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from moshi.models import LMGen, loaders
from torch import nn
from torch.nn import functional

import dialogues
import phrases
import shapes
import tokenizer
from schedule import learning_rate

WINDOW_FRAMES = 300
# Frames after a question's end in which its words are asked for.
RECALL_FRAMES = 5
VOCABULARY = sorted(
    {
        word.lower()
        for question in phrases.QUESTIONS
        for line in question.trained
        for word in line.replace("(", " ").replace(")", " ").replace("|", " ").split()
    }
)
_WORD_IDS = {word: index for index, word in enumerate(VOCABULARY)}


def new_model(text_card: int, path: Path | None = None) -> nn.Module:
    """The official model of the box's sizes in f32: random, or with the weights of a file."""
    model = loaders.get_moshi_lm(path, shapes.language_model(text_card), dtype=torch.float32)
    assert isinstance(model, nn.Module)
    return model


class Heads(nn.Module):
    """What is asked of the temporal transformer beside its text: the question and its words."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.speaker = nn.Linear(dim, dialogues.NOBODY + 1)
        self.words = nn.Linear(dim, len(VOCABULARY))


@dataclass
class Data:
    """Conversations as the model sees them.

    Delayed targets `[n, 17, frames]` and the inputs that precede them; of each frame who speaks,
    the words of the question to recall, whether to recall them, and whether the box is silent.
    """

    inputs: torch.Tensor
    targets: torch.Tensor
    speaker: torch.Tensor
    words: torch.Tensor
    asked: torch.Tensor
    silent: torch.Tensor

    @staticmethod
    def of(batch: dialogues.Batch, text_card: int) -> Data:
        """Lays a batch out for training."""
        codes = np.concatenate([batch.tokens[:, None], batch.own, batch.user], axis=1).astype(
            np.int64
        )
        count, streams, frames = codes.shape
        initial = np.full((count, streams, 1), shapes.CODEBOOK_SIZE, np.int64)
        initial[:, 0] = text_card
        delayed = codes.copy()
        for stream, delay in enumerate(shapes.DELAYS):
            if delay:
                delayed[:, stream, delay:] = codes[:, stream, :-delay]
                delayed[:, stream, :delay] = initial[:, stream]
        inputs = np.concatenate([initial, delayed[:, :, :-1]], axis=2)
        asked = np.zeros((count, frames), bool)
        place = np.zeros((count, frames), np.int64)
        rows = [np.zeros(len(VOCABULARY), np.uint8)]
        for row, turns in enumerate(batch.turns):
            for turn in turns:
                # The frame of the end is an input of the next one.
                asked[row, turn.end + 1 : turn.end + 1 + RECALL_FRAMES] = True
                place[row, turn.end + 1 : turn.end + 1 + RECALL_FRAMES] = len(rows)
                hot = np.zeros(len(VOCABULARY), np.uint8)
                hot[[_WORD_IDS[w] for w in turn.text.lower().split() if w in _WORD_IDS]] = 1
                rows.append(hot)
        speaker = np.concatenate([batch.speaker[:, :1], batch.speaker[:, :-1]], axis=1)
        silent = (batch.speaker == dialogues.NOBODY) | (batch.tokens == tokenizer.PADDING) & (
            np.abs(batch.own.astype(int) - batch.own[:1, :, :1].astype(int)).sum(1) == 0
        )
        return Data(
            torch.from_numpy(inputs),
            torch.from_numpy(delayed),
            torch.from_numpy(speaker),
            torch.from_numpy(np.stack(rows)[place]),
            torch.from_numpy(asked),
            torch.from_numpy(silent),
        )


def alike_codes(codec: nn.Module, count: int = 8) -> np.ndarray:
    """The codes whose vectors are nearest to each code's: `[8, codes, count]`."""
    quantizer = codec.quantizer
    nearest = []
    for layer in [*quantizer.rvq_first.vq.layers, *quantizer.rvq_rest.vq.layers]:
        distances = torch.cdist(layer.embedding, layer.embedding)
        nearest.append(distances.topk(count + 1, largest=False).indices[:, 1:])
    return torch.stack(nearest).numpy().astype(np.int64)


class Stream:
    """Draws windows from the shards in a folder; new shards are taken in as they appear."""

    def __init__(self, folder: Path, text_card: int, seed: int, alike: np.ndarray) -> None:
        self.folder, self.text_card, self.alike = folder, text_card, alike
        self.random = np.random.default_rng(seed)
        self.shards: dict[Path, Data] = {}

    def refresh(self) -> int:
        """Looks for new shards; the number of conversations at hand."""
        for path in sorted(self.folder.glob("dialogues_*.npz")):
            if path not in self.shards and not path.name.endswith(".partial.npz"):
                self.shards[path] = Data.of(dialogues.Batch.load(path), self.text_card)
        return sum(len(data.inputs) for data in self.shards.values())

    def draw(self, count: int) -> dict[str, torch.Tensor]:
        """A batch of windows; every second one starts with a session."""
        rng = self.random
        rows: list[dict[str, torch.Tensor]] = []
        shards = list(self.shards.values())
        sizes = np.array([len(data.inputs) for data in shards], float)
        for _ in range(count):
            data = shards[rng.choice(len(shards), p=sizes / sizes.sum())]
            row = int(rng.integers(len(data.inputs)))
            frames = data.inputs.shape[2]
            start = 0 if rng.random() < 0.5 else int(rng.integers(1, frames - WINDOW_FRAMES + 1))
            window = slice(start, start + WINDOW_FRAMES)
            rows.append(
                {
                    "inputs": self._hide(data.inputs[row, :, window].clone()),
                    "targets": data.targets[row, :, window],
                    "speaker": data.speaker[row, window],
                    "words": data.words[row, window],
                    "asked": data.asked[row, window],
                    "silent": data.silent[row, window],
                }
            )
        return {name: torch.stack([row[name] for row in rows]) for name in rows[0]}

    def _hide(self, inputs: torch.Tensor) -> torch.Tensor:
        """Hides (-1) or falsifies inputs."""
        rng, frames = self.random, inputs.shape[1]
        own, user = inputs[1 : 1 + shapes.CODEBOOKS], inputs[1 + shapes.CODEBOOKS :]

        def some(share: float) -> torch.Tensor:
            return torch.from_numpy(rng.random(frames) < share)

        share = rng.choice([0.0, 0.05, 0.15])
        own[:, some(share)] = -1
        wrong = some(share)
        own[:, wrong] = torch.from_numpy(
            rng.integers(0, shapes.CODEBOOK_SIZE, (shapes.CODEBOOKS, int(wrong.sum())))
        )
        inputs[0, some(0.04)] = tokenizer.PADDING
        user[:, some(rng.choice([0.0, 0.04, 0.08]))] = -1
        if rng.random() < 0.75:
            # Only the first codebooks stay as they are when the room or the level changes.
            user[int(rng.choice([1, 2, 2, 3, 5])) :] = -1
        # Noise and other voices move a code to one of those around it.
        codes = user.numpy()
        moved = rng.random(codes.shape) < rng.choice([0.0, 0.15, 0.3, 0.4])
        moved &= (codes >= 0) & (codes < shapes.CODEBOOK_SIZE)
        book, _ = np.nonzero(moved)
        pick = rng.integers(0, self.alike.shape[2], len(book))
        codes[moved] = self.alike[book, codes[moved], pick]
        return inputs


def losses(
    model: nn.Module, heads: Heads, batch: dict[str, torch.Tensor], depth_share: float
) -> dict[str, torch.Tensor]:
    """The parts of the loss; `depth_share` of spoken frames teach the depth transformer."""
    inputs, targets = batch["inputs"], batch["targets"]
    hidden, text_logits = model.forward_text(inputs)
    text = targets[:, 0]
    text_loss = functional.cross_entropy(
        text_logits[:, 0].transpose(1, 2).float(), text, reduction="none"
    )
    weight = torch.where(text == tokenizer.PADDING, 0.3, 1.0)
    speaker = functional.cross_entropy(
        heads.speaker(hidden).transpose(1, 2).float(), batch["speaker"]
    )
    asked = batch["asked"]
    words = functional.binary_cross_entropy_with_logits(
        heads.words(hidden[asked]).float(), batch["words"][asked].float()
    )
    chosen = torch.rand(text.shape) < torch.where(batch["silent"], 0.15 * depth_share, depth_share)
    logits = model.forward_depformer_training(
        targets.transpose(1, 2)[chosen].T[None], hidden[chosen][None]
    )
    wanted = targets[:, 1 : 1 + shapes.CODEBOOKS].transpose(1, 2)[chosen].T
    audio = functional.cross_entropy(
        logits[0].transpose(1, 2).float(),
        wanted.clamp(max=shapes.CODEBOOK_SIZE - 1),
        reduction="none",
    )
    known = wanted < shapes.CODEBOOK_SIZE
    return {
        "text": (text_loss * weight).sum() / weight.sum(),
        "semantic": audio[0][known[0]].mean(),
        "acoustic": audio[1:][known[1:]].mean(),
        "speaker": speaker,
        "words": words * 10,
    }


WEIGHTS = {"text": 2.0, "semantic": 0.5, "acoustic": 0.5, "speaker": 1.0, "words": 1.0}


def listen(model: nn.Module, user: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Runs the model freely and greedily on users' codes `[batch, 8, frames]`.

    Gives tokens `[batch, frames]` and own codes `[batch, 8, frames]`.
    """
    generator = LMGen(model, use_sampling=False)
    tokens, codes = [], []
    with torch.no_grad(), generator.streaming(len(user)):
        generator.step(torch.zeros(len(user), shapes.CODEBOOKS, 1, dtype=torch.long))
        for frame in range(user.shape[2]):
            out = generator.step(torch.from_numpy(user[:, :, frame : frame + 1].astype(np.int64)))
            if out is not None:
                tokens.append(out[:, 0, 0].numpy())
                codes.append(out[:, 1:, 0].numpy())
    return np.stack(tokens, 1), np.stack(codes, 2)


def spoken_text(tokens: np.ndarray, pieces: tokenizer.Tokenizer) -> str:
    """The words of a row of text tokens."""
    text = pieces.decode(
        [int(t) for t in tokens if t not in (tokenizer.PADDING, tokenizer.END_OF_PADDING)]
    )
    return str(text).strip()


def hearing(
    model: nn.Module, trial: dialogues.Batch, pieces: tokenizer.Tokenizer
) -> tuple[float, list[tuple[str, str, str]]]:
    """Share of held-out questions that are answered right, running freely, and each answer."""
    model.eval()
    tokens, _ = listen(model, trial.user)
    model.train()
    said = []
    for row, turns in zip(tokens, trial.turns, strict=True):
        answer = spoken_text(row[turns[0].end :], pieces)
        said.append((turns[0].text, phrases.QUESTIONS[turns[0].question].answer, answer))
    return float(np.mean([wanted == got for _, wanted, got in said])), said


def train(
    folder: Path,
    pieces: tokenizer.Tokenizer,
    steps: int,
    seed: int,
    trial: dialogues.Batch,
    codec: nn.Module,
    batch_size: int = 16,
    rate: float = 2e-3,
    every: int = 200,
    start: Path | None = None,
) -> None:
    """Trains to `lm.pt` in the folder.

    A run that was stopped goes on, `start` begins from exported weights.
    """
    torch.manual_seed(seed)
    text_card = pieces.get_piece_size()
    stream = Stream(folder, text_card, seed, alike_codes(codec))
    model = new_model(text_card, start).train()
    for parameter in model.parameters():
        parameter.requires_grad_(True)
    heads = Heads(shapes.language_model(text_card)["dim"])
    parameters = [*model.parameters(), *heads.parameters()]
    optimizer = torch.optim.AdamW(parameters, rate, betas=(0.9, 0.95), weight_decay=0.05)
    path, first = folder / "lm.pt", 0
    if path.exists():
        state = torch.load(path, weights_only=False)
        model.load_state_dict(state["model"])
        heads.load_state_dict(state["heads"])
        optimizer.load_state_dict(state["optimizer"])
        first = state["step"]
        stream.random = np.random.default_rng([seed, first])
    began, shown = time.time(), {name: 0.0 for name in WEIGHTS}
    for step in range(first, steps):
        if (step - first) % 50 == 0:
            have = stream.refresh()
        part = step / steps
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(rate, step, 100, part)
        with torch.autocast("cpu", torch.bfloat16):
            # What it says is soon known by heart; most of the time goes to hearing.
            share = 0.35 if step < 250 else 0.1
            parts = losses(model, heads, stream.draw(batch_size), share)
        loss = sum(WEIGHTS[name] * value for name, value in parts.items())
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        for name, value in parts.items():
            shown[name] += value.item()
        if (step + 1) % 20 == 0:
            line = " ".join(f"{name} {value / 20:.3f}" for name, value in shown.items())
            shown = {name: 0.0 for name in WEIGHTS}
            pace = (time.time() - began) / (step + 1 - first)
            print(f"lm {step + 1}/{steps} {line} {have} dialogues {pace:.2f} s/step", flush=True)
        if (step + 1) % every == 0 or step + 1 == steps:
            right, said = hearing(model, trial, pieces)
            print(
                f"lm {step + 1} answers right: {right:.0%}",
                *said[:: max(1, len(said) // 6)],
                sep="\n  ",
                flush=True,
            )
            partial = path.with_suffix(".partial")
            torch.save(
                {
                    "model": model.state_dict(),
                    "heads": heads.state_dict(),
                    "optimizer": optimizer.state_dict(),
                    "step": step + 1,
                },
                partial,
            )
            partial.rename(path)


def trained(path: Path) -> dict[str, torch.Tensor]:
    """The model's weights of a run's file."""
    state: dict[str, torch.Tensor] = torch.load(path, weights_only=False)["model"]
    return state
