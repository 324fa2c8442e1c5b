"""The SentencePiece model of the inner monologue: whole words of the answers, otherwise letters."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

import numpy as np

import phrases
import shapes

if TYPE_CHECKING:
    import sentencepiece

    Tokenizer: TypeAlias = sentencepiece.SentencePieceProcessor

# As in Moshi's own tokenizer: 3 pads, and 0 marks the frame before a word.
END_OF_PADDING, PADDING = 0, 3


def texts() -> list[str]:
    """All that the box says."""
    return [phrases.GREETING] + [question.answer for question in phrases.QUESTIONS]


def train(path: Path) -> Tokenizer:
    """Writes the model and returns it; an existing one is kept, since weights depend on it."""
    import sentencepiece

    if not path.exists():
        from sentencepiece import sentencepiece_model_pb2

        lines = path.with_suffix(".txt")
        lines.write_text(
            "-.,!?'0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ\n" * 40
        )
        words = sorted(
            {f"\N{LOWER ONE EIGHTH BLOCK}{word}" for text in texts() for word in text.split()}
        )
        sentencepiece.SentencePieceTrainer.train(
            input=str(lines),
            model_prefix=str(path.with_suffix("")),
            model_type="char",
            # Whole words, so that the text keeps pace with the speech: there is one piece a frame.
            user_defined_symbols=words,
            vocab_size=len(words) + 4 + 69,
            unk_id=0,
            bos_id=1,
            eos_id=2,
            pad_id=PADDING,
            character_coverage=1.0,
            num_threads=1,
            minloglevel=2,
        )
        lines.unlink()
        path.with_suffix(".vocab").unlink()
        model = sentencepiece_model_pb2.ModelProto()
        model.ParseFromString(path.read_bytes())
        # Paths of the machine that trained it, which are nobody's business.
        model.trainer_spec.ClearField("input")
        model.trainer_spec.ClearField("model_prefix")
        path.write_bytes(model.SerializeToString())
    return sentencepiece.SentencePieceProcessor(model_file=str(path))


def place_words(words: list[tuple[str, float]], frames: int, pieces: Tokenizer) -> np.ndarray:
    """Text tokens of an answer's frames from its words and the seconds at which they start."""
    tokens = np.full(frames, PADDING, np.int64)
    free = 0
    for word, start in words:
        ids = pieces.encode(word)
        frame = max(int(start * shapes.FRAME_RATE), free)
        if frame > 0 and tokens[frame - 1] == PADDING:
            tokens[frame - 1] = END_OF_PADDING
        if frame + len(ids) > frames:
            raise ValueError(f"the text does not fit its speech: {words}")
        tokens[frame : frame + len(ids)] = ids
        free = frame + len(ids)
    return tokens
