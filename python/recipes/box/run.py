"""Makes the model in the box: speech, codec, conversations, language model, evaluation, checkpoint.

Stages run in the order of the list below; each goes on where it was stopped and is skipped when its
result is there. `run.py all` runs them all in a folder of work (`--work`), which then holds the
checkpoint in `checkpoint/`.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import shutil
import sys
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import nn

    from dialogues import Batch

# The recipe's modules are plain files beside this one. Compiling at run time does not pay on a CPU.
sys.path.insert(0, str(Path(__file__).parent))
os.environ.setdefault("NO_TORCH_COMPILE", "1")

SEED = 1
# Recordings of each question: in a file of users' voices, by the box's own, and held out.
ROUNDS_IN_FILE, ROUNDS_OF_OWN, ROUNDS_HELD_OUT = 20, 25, 6
DIALOGUES_IN_SHARD = 64
DEFAULT = "(default: %(default)s)"


class Run:
    """A folder of work and the settings of the run."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options, self.work = options, Path(options.work)
        self.checkpoint = self.work / "checkpoint"
        self.work.mkdir(parents=True, exist_ok=True)
        self.checkpoint.mkdir(exist_ok=True)
        if options.start is not None:
            self._begin_from(options.start)

    def _begin_from(self, start: Path) -> None:
        for name in ("mimi.safetensors", "tokenizer.model", "mimi_config.json"):
            path = self.checkpoint / name
            if not path.exists():
                shutil.copy(start / name, path)
            elif path.read_bytes() != (start / name).read_bytes():
                # Conversations and weights of one codec mean nothing to another.
                sys.exit(f"error: {path} is not that of {start}: give --work an empty folder")

    def voices(self) -> None:
        """Speech of users and of the box for the codec, and the held-out recordings."""
        import corpus
        import phrases

        corpus.build(self.work, self.options.users, SEED)
        # One set to watch the training with, one that is looked at only in the end.
        count = ROUNDS_HELD_OUT * len(phrases.LISTED)
        corpus.held_out(self.work / "held_out.npz", count, 77)
        corpus.held_out(self.work / "final.npz", count, 377)
        corpus.own_held_out(self.work / "own_held_out.npz", 277)
        corpus.own_questions(
            self.work / "own_questions.npz", ROUNDS_OF_OWN * len(phrases.QUESTIONS), 99
        )

    def codec(self) -> None:
        """Trains the codec and exports it; one that is in the checkpoint is taken as it is."""
        import codec
        import export

        if not (self.checkpoint / export.CODEC_FILE).exists():
            codec.train(self.work, self.options.codec_steps, SEED)
            export.write_codec(codec.trained(self.work / "codec.pt"), self.checkpoint)

    def answers(self) -> None:
        """Recordings of the box's own lines."""
        import answers
        import dialogues

        answers.record(
            self.work / "answers.npz", dialogues.load_codec(self.checkpoint / "mimi.safetensors")
        )

    def dialogues(self) -> None:
        """Conversations, until there are as many shards as wanted, by some processes at once."""
        import answers
        import corpus
        import tokenizer

        # What all processes share is made before they start.
        tokenizer.train(self.checkpoint / "tokenizer.model")
        path = self.work / "answers.npz"
        answers.word_starts(path, corpus.load(path))
        count = self.options.processes
        if count == 1:
            self.shards_of(0)
            return
        context = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(count, mp_context=context) as pool:
            list(pool.map(_shards_of, [self.options] * count, range(count)))

    def shards_of(self, process: int) -> None:
        """The shards that one of the processes makes."""
        import answers
        import corpus
        import dialogues
        import phrases
        import tokenizer

        def by_question(path: Path) -> list[list[corpus.Utterance]]:
            recordings = corpus.load_questions(path)
            return [recordings[number::count] for number in range(count)]

        count = len(phrases.QUESTIONS)
        codec = dialogues.load_codec(self.checkpoint / "mimi.safetensors", self.options.device)
        pieces = tokenizer.train(self.checkpoint / "tokenizer.model")
        own = answers.load(self.work / "answers.npz", codec, pieces)
        own_questions = by_question(self.work / "own_questions.npz")
        last = None
        for shard, number in dialogues.shards_of(
            process, self.options.processes, self.options.shards, self.options.question_files
        ):
            path = self.work / f"dialogues_{shard:04}.npz"
            if path.exists():
                continue
            if number != last:
                questions_path = self.work / f"questions_{number}.npz"
                corpus.questions(questions_path, ROUNDS_IN_FILE * count, 100 + number)
                questions, last = by_question(questions_path), number
            composer = dialogues.Composer(codec, own, questions, own_questions, [SEED, shard])
            dialogues.batch_of(composer, DIALOGUES_IN_SHARD).save(path)
            print(f"dialogues: shard {shard + 1} of {self.options.shards}", flush=True)

    def decoder(self) -> None:
        """Trains the codec's decoder further, on the box's own voice, and exports it.

        Not after `--start`: the decoder of a checkpoint is already trained.
        """
        if self.options.start is not None:
            print("decoder: kept as it is in the checkpoint", flush=True)
            return
        import codec
        import export

        codec.polish(
            self.work, self.checkpoint / export.CODEC_FILE, self.options.decoder_steps, SEED
        )
        export.write_codec(codec.trained(self.work / "decoder.pt"), self.checkpoint)

    def lm(self) -> None:
        """Trains the language model and exports it."""
        import dialogues
        import export
        import lm
        import tokenizer

        pieces = tokenizer.train(self.checkpoint / "tokenizer.model")
        start = self.options.start and self.options.start / export.MODEL_FILE
        codec = dialogues.load_codec(self.checkpoint / "mimi.safetensors", self.options.device)
        plan = lm.Plan(
            self.options.lm_steps,
            self.options.lm_minutes,
            self.options.batch,
            self.options.rate,
            self.options.look_every,
        )
        lm.train(self.work, pieces, plan, SEED, self.trial(codec), codec, start)
        model = lm.new_model(pieces.get_piece_size())
        model.load_state_dict(lm.trained(self.work / "lm.pt"))
        export.write_model(model, pieces.get_piece_size(), self.checkpoint)

    def trial(self, codec: nn.Module) -> Batch:
        """The held-out recordings as users' channels, for a look during training."""
        import numpy as np

        import corpus
        import dialogues
        import evaluate
        import phrases

        rng = np.random.default_rng(3)
        recordings = corpus.load_questions(self.work / "held_out.npz", phrases.LISTED)
        places = {question.name: place for place, question in enumerate(phrases.QUESTIONS)}
        users, turns = [], []
        for recording in recordings:
            channel, end = evaluate.mixed(recording, evaluate.FIRST_QUESTION_S, 6.0, rng)
            whole = np.zeros(160 * evaluate.SIZE, np.float32)
            whole[: min(len(channel), len(whole))] = channel[: len(whole)]
            users.append(whole)
            turns.append(
                [dialogues.Turn(end // evaluate.SIZE, places[recording.question], recording.text)]
            )
        codes = np.concatenate(
            [dialogues.encode(codec, np.stack(users[i : i + 8])) for i in range(0, len(users), 8)]
        )
        empty = np.zeros((len(users), 160), np.int64)
        return dialogues.Batch(empty, codes, codes, empty, turns)

    def evaluate(self) -> None:
        """Measures the checkpoint, see `evaluate.py`, and writes its card."""
        import card
        import evaluate

        evaluate.run(self.checkpoint, self.work)
        card.write(self.checkpoint, self.work / "evaluation.json", self.options.course)


def _shards_of(options: argparse.Namespace, process: int) -> None:
    _prepare(1)
    Run(options).shards_of(process)


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError("at least 1")
    return number


def _prepare(threads: int) -> None:
    import torch

    torch.set_num_threads(threads)
    # Digital silence decays into denormal numbers, which take a hundred times as long.
    torch.set_flush_denormal(True)


STAGES = ("voices", "codec", "answers", "dialogues", "lm", "decoder", "evaluate")


def main() -> None:
    """Parses the command line and runs the stages."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("stage", choices=[*STAGES, "all"], help="what to run")
    parser.add_argument("--work", default="box-work", help="folder of work (default: %(default)s)")
    parser.add_argument(
        "--start",
        type=Path,
        help="begin from the codec, the tokenizer and the model of this checkpoint",
    )
    parser.add_argument(
        "--threads", type=_positive, default=2, help="threads of PyTorch (default: %(default)s)"
    )
    parser.add_argument(
        "--users",
        type=_positive,
        default=4000,
        help="recordings of users for the codec (default: %(default)s)",
    )
    parser.add_argument(
        "--codec-steps", type=_positive, default=9000, help="(default: %(default)s)"
    )
    parser.add_argument(
        "--decoder-steps", type=_positive, default=3000, help="(default: %(default)s)"
    )
    parser.add_argument(
        "--question-files",
        type=_positive,
        default=16,
        help="of 20 recordings of each question (default: %(default)s)",
    )
    parser.add_argument(
        "--shards",
        type=_positive,
        default=160,
        help="of 64 conversations each (default: %(default)s)",
    )
    parser.add_argument(
        "--processes",
        type=_positive,
        default=1,
        help="how many make conversations at once (default: %(default)s)",
    )
    parser.add_argument("--lm-steps", type=_positive, default=12000, help=DEFAULT)
    parser.add_argument(
        "--lm-minutes", type=float, help="train the language model no longer than this"
    )
    parser.add_argument(
        "--batch",
        type=_positive,
        default=16,
        help="windows of 24 s in a step of the language model (default: %(default)s)",
    )
    parser.add_argument(
        "--rate",
        type=float,
        default=2e-3,
        help="learning rate of the language model (default: %(default)s)",
    )
    parser.add_argument(
        "--look-every",
        type=_positive,
        default=200,
        help="steps between looks at held-out recordings (default: %(default)s)",
    )
    parser.add_argument(
        "--device",
        default="cpu",
        help="where conversations are encoded and the language model is trained: cpu or cuda",
    )
    parser.add_argument("--course", default="", help="what the card is to tell of the training")
    options = parser.parse_args()
    if options.stage in ("evaluate", "all") and not options.course:
        options.course = (
            f"Made by `run.py {options.stage}` with {options.lm_steps} steps of the language model."
        )
    _prepare(options.threads)
    run = Run(options)
    for stage in STAGES if options.stage == "all" else (options.stage,):
        getattr(run, stage)()


if __name__ == "__main__":
    main()
