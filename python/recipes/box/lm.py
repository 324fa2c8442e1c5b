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
from schedule import learning_rate, progress

WINDOW_FRAMES = 240
# Frames after a question's end in which its words are asked for.
RECALL_FRAMES = 5
SHARDS = "dialogues_[0-9][0-9][0-9][0-9].npz"
VOCABULARY = sorted(
    {
        word.lower()
        for question in phrases.QUESTIONS
        for line in question.trained + question.sentences
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
    """Conversations as the model sees them, compactly.

    `rows` are the delayed streams `[n, 17, 1 + frames]`, after a column of initial tokens: what is
    an input of one frame is the target of that before it. Of each frame `[n, frames]`: who speaks,
    whether the box is silent, and the place in `words` of what was asked (place 0: nothing).
    """

    rows: torch.Tensor
    speaker: torch.Tensor
    silent: torch.Tensor
    asked: torch.Tensor
    words: torch.Tensor

    @staticmethod
    def of(batch: dialogues.Batch, text_card: int) -> Data:
        """Lays a batch out for training."""
        codes = np.concatenate([batch.tokens[:, None], batch.own, batch.user], axis=1)
        count, streams, frames = codes.shape
        rows = np.full((count, streams, 1 + frames), shapes.CODEBOOK_SIZE, np.int16)
        rows[:, 0, 0] = text_card
        for stream, delay in enumerate(shapes.DELAYS):
            rows[:, stream, 1 + delay :] = codes[:, stream, : frames - delay]
        asked = np.zeros((count, frames), np.int32)
        words = [np.zeros(len(VOCABULARY), np.uint8)]
        for row, turns in enumerate(batch.turns):
            for turn in turns:
                # The frame of the end is an input of the next one.
                asked[row, turn.end + 1 : turn.end + 1 + RECALL_FRAMES] = len(words)
                hot = np.zeros(len(VOCABULARY), np.uint8)
                hot[[_WORD_IDS[w] for w in turn.text.lower().split() if w in _WORD_IDS]] = 1
                words.append(hot)
        speaker = np.concatenate([batch.speaker[:, :1], batch.speaker[:, :-1]], axis=1)
        silent = (batch.speaker == dialogues.NOBODY) | (batch.tokens == tokenizer.PADDING) & (
            np.abs(batch.own.astype(int) - batch.own[:1, :, :1].astype(int)).sum(1) == 0
        )
        return Data(
            torch.from_numpy(rows),
            torch.from_numpy(speaker.astype(np.uint8)),
            torch.from_numpy(silent),
            torch.from_numpy(asked),
            torch.from_numpy(np.stack(words)),
        )

    @staticmethod
    def joined(parts: list[Data]) -> Data:
        """All of them in one."""
        asked, words = [], 0
        for part in parts:
            asked.append(torch.where(part.asked > 0, part.asked + words, 0))
            words += len(part.words)
        return Data(
            torch.cat([part.rows for part in parts]),
            torch.cat([part.speaker for part in parts]),
            torch.cat([part.silent for part in parts]),
            torch.cat(asked),
            torch.cat([part.words for part in parts]),
        )

    def to(self, device: torch.device) -> Data:
        """The same on a device."""
        return Data(
            self.rows.to(device),
            self.speaker.to(device),
            self.silent.to(device),
            self.asked.to(device),
            self.words.to(device),
        )


def alike_codes(codec: nn.Module, count: int = 8) -> torch.Tensor:
    """The codes whose vectors are nearest to each code's: `[8, codes, count]`."""
    quantizer = codec.quantizer
    nearest = []
    for layer in [*quantizer.rvq_first.vq.layers, *quantizer.rvq_rest.vq.layers]:
        distances = torch.cdist(layer.embedding, layer.embedding)
        nearest.append(distances.topk(count + 1, largest=False).indices[:, 1:])
    return torch.stack(nearest)


class Stream:
    """Draws windows from the shards in a folder; new shards are taken in as they appear."""

    def __init__(self, folder: Path, text_card: int, seed: int, alike: torch.Tensor) -> None:
        self.folder, self.text_card, self.alike = folder, text_card, alike
        self.device = alike.device
        self.random = torch.Generator(self.device)
        self.random.manual_seed(seed)
        self.known: set[Path] = set()
        self.data: Data | None = None

    def refresh(self) -> int:
        """Looks for new shards; the number of conversations at hand."""
        new = [path for path in sorted(self.folder.glob(SHARDS)) if path not in self.known]
        parts = [
            Data.of(dialogues.Batch.load(path), self.text_card).to(self.device) for path in new
        ]
        if new:
            self.known.update(new)
            self.data = Data.joined([*([self.data] if self.data else []), *parts])
        return len(self.data.rows) if self.data else 0

    def _uniform(self, *shape: int) -> torch.Tensor:
        return torch.rand(shape, generator=self.random, device=self.device)

    def _integers(self, end: int, *shape: int) -> torch.Tensor:
        return torch.randint(0, end, shape, generator=self.random, device=self.device)

    def _one_of(self, values: list[float], count: int) -> torch.Tensor:
        """One of the values for each of `count` rows, shaped to spread over their frames."""
        choices = torch.tensor(values, device=self.device)
        return choices[self._integers(len(values), count)][:, None]

    def draw(self, count: int) -> dict[str, torch.Tensor]:
        """A batch of windows; every second one starts with a session."""
        data = self.data
        if data is None:
            raise FileNotFoundError(f"no conversations in {self.folder}: run the stage dialogues")
        last = data.speaker.shape[1] - WINDOW_FRAMES
        row = self._integers(len(data.rows), count)
        start = self._integers(last + 1, count) * (self._uniform(count) < 0.5)
        frames = start[:, None] + torch.arange(WINDOW_FRAMES + 1, device=self.device)
        streams = torch.arange(data.rows.shape[1], device=self.device)
        window = data.rows[row[:, None, None], streams[None, :, None], frames[:, None]].long()
        at = (row[:, None], frames[:, :-1])
        asked = data.asked[at]
        return {
            "inputs": self._hide(window[:, :, :-1].clone()),
            "targets": window[:, :, 1:],
            "speaker": data.speaker[at].long(),
            "asked": asked > 0,
            "words": data.words[asked[asked > 0]].float(),
            "silent": data.silent[at],
        }

    def _hide(self, inputs: torch.Tensor) -> torch.Tensor:
        """Hides (-1) or falsifies inputs `[batch, 17, frames]`, which it changes."""
        count, _, frames = inputs.shape
        books = torch.arange(shapes.CODEBOOKS, device=self.device)[None, :, None]
        own, user = inputs[:, 1 : 1 + shapes.CODEBOOKS], inputs[:, 1 + shapes.CODEBOOKS :]
        share = self._one_of([0.0, 0.05, 0.15], count)
        own.masked_fill_((self._uniform(count, frames) < share)[:, None], -1)
        wrong = (self._uniform(count, frames) < share)[:, None]
        other = self._integers(shapes.CODEBOOK_SIZE, count, shapes.CODEBOOKS, frames)
        own.copy_(torch.where(wrong, other, own))
        inputs[:, 0].masked_fill_(self._uniform(count, frames) < 0.04, tokenizer.PADDING)
        share = self._one_of([0.0, 0.04, 0.08], count)
        user.masked_fill_((self._uniform(count, frames) < share)[:, None], -1)
        # Only the first codebooks stay as they are when the room or the level changes.
        kept = torch.where(
            self._uniform(count, 1) < 0.75, self._one_of([1.0, 2.0, 2.0, 3.0, 5.0], count), 8.0
        )
        user.masked_fill_(books >= kept[:, :, None], -1)
        # Noise and other voices move a code to one of those around it.
        share = self._one_of([0.0, 0.15, 0.3, 0.4], count)[:, :, None]
        moved = self._uniform(count, shapes.CODEBOOKS, frames) < share
        moved &= (user >= 0) & (user < shapes.CODEBOOK_SIZE)
        pick = self._integers(self.alike.shape[2], count, shapes.CODEBOOKS, frames)
        near = self.alike[books, user.clamp(0, shapes.CODEBOOK_SIZE - 1), pick]
        user.copy_(torch.where(moved, near, user))
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
        heads.words(hidden[asked]).float(), batch["words"], reduction="sum"
    ) / max(1, batch["words"].numel())
    share = torch.where(batch["silent"], 0.15 * depth_share, depth_share)
    chosen = torch.rand_like(share) < share
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
        "semantic": audio[0][known[0]].sum() / known[0].sum().clamp(min=1),
        "acoustic": audio[1:][known[1:]].sum() / known[1:].sum().clamp(min=1),
        "speaker": speaker,
        "words": words * 10,
    }


SHOWN_STEPS = 20
WEIGHTS = {"text": 2.0, "semantic": 0.5, "acoustic": 0.5, "speaker": 1.0, "words": 1.0}


def listen(model: nn.Module, user: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Runs the model freely and greedily on users' codes `[batch, 8, frames]`.

    Gives tokens `[batch, frames]` and own codes `[batch, 8, frames]`.
    """
    generator = LMGen(model, use_sampling=False)
    heard = torch.from_numpy(user.astype(np.int64)).to(next(model.parameters()).device)
    tokens, codes = [], []
    with torch.no_grad(), generator.streaming(len(user)):
        generator.step(torch.zeros_like(heard[:, :, :1]))
        for frame in range(user.shape[2]):
            out = generator.step(heard[:, :, frame : frame + 1])
            if out is not None:
                tokens.append(out[:, 0, 0].cpu().numpy())
                codes.append(out[:, 1:, 0].cpu().numpy())
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


@dataclass
class Plan:
    """How long and how fast to train.

    It ends after `steps`, or after `minutes` if that is sooner, and the learning rate's way down
    follows whichever is nearer to its end.
    """

    steps: int
    minutes: float | None = None
    batch_size: int = 16
    rate: float = 2e-3
    every: int = 200


def train(
    folder: Path,
    pieces: tokenizer.Tokenizer,
    plan: Plan,
    seed: int,
    trial: dialogues.Batch,
    codec: nn.Module,
    start: Path | None = None,
) -> None:
    """Trains to `lm.pt` in the folder, on the device of the codec.

    A run that was stopped goes on, `start` begins from exported weights.
    """
    device = next(codec.parameters()).device
    text_card = pieces.get_piece_size()
    stream = Stream(folder, text_card, seed, alike_codes(codec))
    model = new_model(text_card, start).to(device).train()
    for parameter in model.parameters():
        parameter.requires_grad_(True)
    heads = Heads(shapes.language_model(text_card)["dim"]).to(device)
    parameters = [*model.parameters(), *heads.parameters()]
    optimizer = torch.optim.AdamW(parameters, plan.rate, betas=(0.9, 0.95), weight_decay=0.05)
    path, step, before = folder / "lm.pt", 0, 0.0
    if path.exists():
        state = torch.load(path, weights_only=False, map_location=device)
        model.load_state_dict(state["model"])
        heads.load_state_dict(state["heads"])
        optimizer.load_state_dict(state["optimizer"])
        step, before = state["step"], state["seconds"]
        stream.random.manual_seed(seed + step)
    torch.manual_seed(seed + step)
    narrow = bfloat16_is_faster(device)
    began, first, have = time.time(), step, 0
    shown = torch.zeros(len(WEIGHTS), device=device)

    def part() -> float:
        return progress(step, plan.steps, before + time.time() - began, plan.minutes)

    done = part() == 1
    while not done:
        if (step - first) % 50 == 0:
            have = stream.refresh()
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(plan.rate, step, 100, part())
        with torch.autocast(device.type, torch.bfloat16, enabled=narrow):
            # What it says is soon known by heart; most of the time goes to hearing.
            share = 0.35 if step < 250 else 0.1
            parts = losses(model, heads, stream.draw(plan.batch_size), share)
        values = torch.stack([parts[name].float() for name in WEIGHTS])
        optimizer.zero_grad(set_to_none=True)
        (values * torch.tensor([*WEIGHTS.values()], device=device)).sum().backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        shown += values.detach() / SHOWN_STEPS
        step += 1
        done = part() == 1
        if step % SHOWN_STEPS == 0:
            line = " ".join(f"{n} {v:.3f}" for n, v in zip(WEIGHTS, shown.tolist(), strict=True))
            shown.zero_()
            pace = (time.time() - began) / (step - first)
            print(f"lm {step} ({part():.1%}) {line} {have} dialogues {pace:.3f} s/step", flush=True)
        if step % plan.every == 0 or done:
            partial = path.with_suffix(".partial")
            torch.save(
                {
                    "model": model.state_dict(),
                    "heads": heads.state_dict(),
                    "optimizer": optimizer.state_dict(),
                    "step": step,
                    "seconds": before + time.time() - began,
                },
                partial,
            )
            partial.rename(path)
            right, said = hearing(model, trial, pieces)
            print(
                f"lm {step} answers right: {right:.0%}",
                *said[:: max(1, len(said) // 6)],
                sep="\n  ",
                flush=True,
            )


def bfloat16_is_faster(device: torch.device) -> bool:
    """Whether products of the model's sizes are; some processors only emulate them."""
    if device.type != "cpu":
        return True
    seconds = []
    for dtype in (torch.float32, torch.bfloat16):
        a, b = torch.ones(4800, 192, dtype=dtype), torch.ones(192, 576, dtype=dtype)
        a @ b
        began = time.perf_counter()
        for _ in range(10):
            a @ b
        seconds.append(time.perf_counter() - began)
    return seconds[1] < seconds[0]


def trained(path: Path) -> dict[str, torch.Tensor]:
    """The model's weights of a run's file."""
    state: dict[str, torch.Tensor] = torch.load(path, weights_only=False, map_location="cpu")[
        "model"
    ]
    return state
