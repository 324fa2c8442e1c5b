"""Trains the two small tokenizers of this folder and lists what SentencePiece does with odd texts.

Run in this folder, with the package `sentencepiece` installed.
"""

import json
import random
from pathlib import Path

import sentencepiece

FOLDER = Path(__file__).parent


def words(text: str) -> list[str]:
    """Alternatives separated by bars."""
    return text.split("|")


SUBJECTS = words(
    "the engineer|a small bird|my neighbour|the old clock|nobody|the river|une voiture|"
    "le chat noir|der Wecker|la señora|our model|the codec|every listener|a quiet street|"
    "the second speaker"
)
VERBS = words(
    "listens to|answers|forgets|repairs|écoute|verstellt|describes|sees|follows|interrupts|"
    "crosses|records|borrows|remembers|paints"
)
OBJECTS = words(
    "the music|a long story|naïve questions|the café door|un déjeuner|eine Straße|"
    "the train to Lyon|two frames of audio|garçons and niños|the answer|an empty room|hot tea|"
    "the morning news|the last word|a broken radio"
)
ENDS = [".", "!", "?", ", again.", " today.", " -- at last.", " (slowly).", ": 12 times!"]
TEXTS = [
    "",
    " ",
    "hello",
    "The codec listens to the music.",
    "  leading and   many    spaces  ",
    "tab\tand\nnewline",
    "naïve café, garçon! Straße señora déjeuner",
    "cafe\u0301 decomposed",
    "emoji 🙂 and 👩\u200d👩\u200d👧 family",
    "日本語テキスト",
    "مرحبا",
    "\u200bzero width",
    "\ufb01ne ligature, \u2163, \u2460, \uff46\uff55\uff4c\uff4c width",
    "12 times!",
    "a\u2581b",
    "<s> </s> <unk> <0x41>",
    "\u00a0no-break",
    "\U0001d518\U0001d52b\U0001d526\U0001d520\U0001d52c\U0001d521\U0001d522",
    "mixed 🙂naïve日本 text",
]


def corpus() -> str:
    """Six thousand sentences, always the same."""
    dice = random.Random(5)
    lines = []
    for _ in range(6000):
        parts = [dice.choice(words) for words in (SUBJECTS, VERBS, OBJECTS)]
        line = " ".join(parts) + dice.choice(ENDS)
        lines.append(line[0].upper() + line[1:] if dice.random() < 0.5 else line)
    return "\n".join(lines)


def main() -> None:
    """Writes `unigram` and `bpe`, each as `.model` and `.json`."""
    for kind in ("unigram", "bpe"):
        model = FOLDER / f"{kind}.model"
        with model.open("wb") as writer:
            sentencepiece.SentencePieceTrainer.train(
                sentence_iterator=iter(corpus().splitlines()),
                model_writer=writer,
                model_type=kind,
                vocab_size=400,
                byte_fallback=True,
                unk_id=0,
                bos_id=1,
                eos_id=2,
                pad_id=3,
                num_threads=1,
                minloglevel=2,
            )
        processor = sentencepiece.SentencePieceProcessor(model_file=str(model))
        texts = [
            {
                "text": text,
                "ids": processor.encode(text),
                "pieces": processor.encode(text, out_type=str),
                "decoded": processor.decode(processor.encode(text)),
            }
            for text in TEXTS
        ]
        facts = {"vocab_size": processor.vocab_size(), "texts": texts}
        rendered = json.dumps(facts, ensure_ascii=False, indent=1)
        (FOLDER / f"{kind}.json").write_text(rendered + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
