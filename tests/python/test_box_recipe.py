"""The recipe of the model in the box: what of it needs neither PyTorch nor a synthesizer."""

from __future__ import annotations

import ast
import random
import re
import sys
from pathlib import Path

import numpy as np
import pytest

import augment
import corpus
import dialogues
import evaluate
import judge
import phrases
import schedule
import shapes
import tokenizer
import voices
from schedule import LAST_PART, learning_rate
from support import REPOSITORY, Array

FRAME = shapes.FRAME_SIZE
COUNT = len(phrases.QUESTIONS)
LETTERS = {letter: 10 + place for place, letter in enumerate("abcdefghijklmnopqrstuvwxyz")}


def rng() -> np.random.Generator:
    return np.random.default_rng(1)


def decibels(samples: Array) -> float:
    return float(10 * np.log10(np.mean(np.square(samples, dtype=np.float64))))


def tone(hertz: float, seconds: float = 1.0, rate: int = voices.SAMPLE_RATE) -> Array:
    return np.sin(2 * np.pi * hertz * np.arange(int(seconds * rate)) / rate).astype(np.float32)


def strongest_hertz(samples: Array, rate: int) -> float:
    spectrum = np.abs(np.fft.rfft(samples * np.hanning(len(samples))))
    return float(spectrum.argmax() * rate / len(samples))


def all_texts(grammar: str) -> set[str]:
    """Every text that a phrasing stands for."""
    group = re.search(r"\(([^()]*)\)", grammar)
    if group is None:
        return {" ".join(grammar.split())}
    before, after = grammar[: group.start()], grammar[group.end() :]
    return set().union(*(all_texts(before + one + after) for one in group[1].split("|")))


def trained_texts(question: phrases.Question) -> set[str]:
    """Every text with which training may put a question, in lower case."""
    plain = set().union(*map(all_texts, question.trained), question.sentences)
    return {
        " ".join(f"{before} {text} {after}".split()).lower()
        for text in plain
        for before in ("", *phrases._BEFORE)
        for after in ("", *phrases._AFTER)
    }


def held_out_texts(question: phrases.Question) -> set[str]:
    """Every text with which the evaluation alone may put a question, in lower case."""
    return {text.lower() for grammar in question.held_out for text in all_texts(grammar)}


class Letters:
    """A tokenizer with a piece for each letter."""

    def encode(self, word: str) -> list[int]:
        return [LETTERS[letter] for letter in word]


# The codes of the stand-in of the codec: the loudness of each frame, from 0 for silence.
def loudness_codes(_codec: object, samples: Array) -> Array:
    peaks = np.abs(samples).reshape(len(samples), -1, FRAME).max(2)
    codes = np.ceil(peaks * 200).astype(np.uint8)
    return np.repeat(codes[:, None], shapes.CODEBOOKS, axis=1)


def answer_of(number: int, frames: int) -> dialogues.Answer:
    """An answer that is heard in all its frames; its text is its number in every second one."""
    samples = np.full(frames * FRAME, 0.5, np.float32)
    padded = np.pad(samples, (0, dialogues.TAIL_FRAMES * FRAME))
    tokens = np.full(frames + dialogues.TAIL_FRAMES, tokenizer.PADDING, np.int64)
    tokens[0 : frames - 1 : 2] = 100 + number
    return dialogues.Answer(samples, loudness_codes(None, padded[None])[0], tokens)


@pytest.fixture
def composer(monkeypatch: pytest.MonkeyPatch) -> dialogues.Composer:
    """Puts questions of one second together; conversations have no noise and no echo."""
    monkeypatch.setattr(dialogues, "encode", loudness_codes)
    monkeypatch.setattr(dialogues.Composer, "_surround", lambda *_: None)
    questions = [
        [corpus.Utterance(0.3 * tone(300 + 10 * number), f"question {number}", "v", [], [])]
        for number in range(COUNT)
    ]
    answers = [answer_of(number, 20 + number) for number in range(COUNT + 1)]
    return dialogues.Composer(None, answers, questions, questions, [1])


def test_recipe_is_imported_without_pytorch() -> None:
    assert Path(dialogues.__file__).parent.parts[-2:] == ("recipes", "box")
    assert "torch" not in sys.modules


def test_there_are_thirty_questions_with_answers_of_their_own() -> None:
    assert COUNT >= 30
    answers = [phrases.GREETING, *(question.answer for question in phrases.QUESTIONS)]
    assert len({judge.plain(answer) for answer in answers}) == COUNT + 1
    assert len({question.name for question in phrases.QUESTIONS}) == COUNT


def test_every_question_is_put_in_several_ways() -> None:
    for question in phrases.QUESTIONS:
        assert len(set().union(*map(all_texts, question.trained))) >= 10, question.name
        assert len(set().union(*map(all_texts, question.held_out))) >= 3, question.name


def test_phrasings_expand_to_words() -> None:
    for question in phrases.QUESTIONS:
        for grammar in (*question.trained, *question.sentences, *question.held_out):
            for text in all_texts(grammar):
                assert re.fullmatch(r"[A-Za-z']+( [A-Za-z']+)*", text), (grammar, text)


def test_drawn_phrasings_are_those_of_the_grammar() -> None:
    source = random.Random(1)
    for question in phrases.QUESTIONS:
        trained, held_out = trained_texts(question), set(question.held_out)
        drawn = {phrases.ask(question, source).lower() for _ in range(200)}
        assert drawn <= trained, question.name
        assert len(drawn) > 20, question.name
        assert {phrases.ask_held_out(question, source) for _ in range(400)} == held_out


def test_what_is_unsure_is_known_and_not_listed() -> None:
    names = {question.name for question in phrases.QUESTIONS}
    listed = {question.name for question in phrases.LISTED}
    assert names - listed == phrases.UNSURE
    card = (REPOSITORY / "rust/moshi-box/checkpoint/README.md").read_text()
    for question in phrases.QUESTIONS:
        row = f"| {phrases.plain(question)} | {question.answer} |"
        assert (row in card) == (question.name in listed), row


def test_sentences_of_others_are_trained_or_held_out_and_never_both() -> None:
    trained = [line for question in phrases.QUESTIONS for line in question.sentences]
    held_out = phrases.HELD_OUT_OF_OTHERS
    assert len(set(map(str.lower, trained))) == len(trained) > 1_500
    assert held_out <= {line for question in phrases.QUESTIONS for line in question.held_out}
    assert len(held_out) >= 200
    assert not held_out & set(trained)


def test_nested_alternatives_expand() -> None:
    source = random.Random(1)
    drawn = {phrases.expand("a (b|c (d|)) e", source) for _ in range(100)}
    assert drawn == {"a b e", "a c d e", "a c e"} == all_texts("a (b|c (d|)) e")


def test_training_cannot_draw_a_held_out_phrasing() -> None:
    plain = {t.lower() for q in phrases.QUESTIONS for g in q.trained for t in all_texts(g)}
    held_out = {t: q for q in phrases.QUESTIONS for g in q.held_out for t in all_texts(g.lower())}
    assert len(held_out) >= 3 * COUNT
    assert not plain & held_out.keys()
    # What words around a phrasing make of it is drawn again.
    source = random.Random(1)
    for text, question in held_out.items():
        if text in trained_texts(question):
            drawn = {phrases.ask(question, source).lower() for _ in range(5000)}
            assert not drawn & held_out.keys(), text


def test_no_phrasing_puts_two_questions() -> None:
    owner: dict[str, str] = {}
    for question in phrases.QUESTIONS:
        for text in trained_texts(question) | held_out_texts(question):
            assert owner.setdefault(text, question.name) == question.name, text


def test_held_out_voices_are_not_trained() -> None:
    source = random.Random(1)
    drawn = [
        {
            voice.name.split("+")[-1]
            for voice in (draw(source) for _ in range(3000))
            if voice.program == "espeak-ng"
        }
        for draw in (voices.draw_user_voice, voices.draw_held_out_voice)
    ]
    assert not drawn[0] & drawn[1]
    assert drawn[1] == voices.HELD_OUT_VARIANTS
    assert drawn[0] == set(voices.variants(False))


@pytest.mark.parametrize("rate", [16_000, 22_050, 44_100, 48_000])
def test_resampling_keeps_duration_frequency_and_level(rate: int) -> None:
    made = voices.resample(tone(440, rate=rate), rate)
    assert made.dtype == np.float32
    assert len(made) == voices.SAMPLE_RATE
    assert strongest_hertz(made, voices.SAMPLE_RATE) == pytest.approx(440, abs=1)
    inner = made[2400:-2400]
    assert decibels(inner) == pytest.approx(-3.01, abs=0.1)
    # A whole number of samples in all: half a sample of drift at the most.
    drift = 0.5 / voices.SAMPLE_RATE * 2 * np.pi * 440
    np.testing.assert_allclose(inner, tone(440)[2400:-2400], atol=drift + 0.01)


def test_resampling_removes_what_the_lower_rate_cannot_hold() -> None:
    assert decibels(voices.resample(tone(11_000), voices.SAMPLE_RATE, 16_000)[800:-800]) < -40


@pytest.mark.parametrize("samples", [0, 1, 1023, 1024, 24_000])
def test_resampling_takes_any_length(samples: int) -> None:
    made = voices.resample(np.ones(samples, np.float32), 16_000, 24_000)
    assert len(made) == round(samples * 1.5)


def test_trimming_leaves_the_sound_and_a_margin() -> None:
    silence, sound = np.full(12_000, 1e-4, np.float32), tone(500, 0.5)
    made = voices.trim(np.concatenate([silence, sound, silence]))
    assert len(made) == pytest.approx(len(sound) + 2 * 0.03 * voices.SAMPLE_RATE, abs=50)
    assert decibels(made[800:-800]) == pytest.approx(-3.01, abs=0.1)
    assert len(voices.trim(np.zeros(1000, np.float32))) == 0
    assert len(voices.trim(np.zeros(0, np.float32))) == 0


def test_level_is_that_of_speech_without_its_pauses() -> None:
    sound = np.concatenate([0.01 * tone(200), np.zeros(48_000, np.float32)])
    made = corpus.level(sound)
    assert decibels(made[:24_000]) == pytest.approx(20 * np.log10(corpus.SPEECH_RMS), abs=0.2)
    click = np.zeros(24_000, np.float32)
    click[:24_000:200] = 0.01
    assert np.abs(corpus.level(click, rms=2.0)).max() == pytest.approx(0.95, abs=1e-3)


def test_recordings_survive_the_disk(tmp_path: Path) -> None:
    wanted = [
        corpus.Utterance(0.5 * tone(300, 0.2), "one", "flite slt", ["pau", "w"], [0.1, 0.2]),
        corpus.Utterance(-1.0 * tone(500, 0.1), "two", "espeak-ng en-us+m1", [], []),
    ]
    corpus.save(tmp_path / "some.npz", wanted)
    assert [path.name for path in tmp_path.iterdir()] == ["some.npz"]
    for found, given in zip(corpus.load(tmp_path / "some.npz"), wanted, strict=True):
        np.testing.assert_allclose(found.samples, given.samples, atol=1 / 32767)
        assert (found.text, found.voice, found.phones, found.ends) == (
            given.text,
            given.voice,
            given.phones,
            given.ends,
        )


@pytest.mark.parametrize("change", [augment.band_limit, augment.reverberate, augment.as_heard])
def test_rooms_and_microphones_keep_length_and_stay_finite(change: object) -> None:
    assert callable(change)
    sound = sum(0.02 * tone(hertz, 0.7) for hertz in range(400, 3000, 130))
    assert isinstance(sound, np.ndarray)
    source, gains = rng(), []
    for _ in range(40):
        made = change(sound, source)
        assert made.shape == sound.shape
        assert made.dtype == np.float32
        assert np.isfinite(made).all()
        assert np.abs(made).max() <= 1
        gains.append(decibels(made) - decibels(sound))
    low, high = {
        augment.band_limit: (-1.5, 0.1),
        augment.reverberate: (-2.0, 3.0),
        augment.as_heard: (-15.0, 9.0),
    }[change]
    assert low < min(gains)
    assert max(gains) < high
    assert max(gains) - min(gains) > 0.01


def test_band_limit_removes_rumble_and_hiss() -> None:
    for hertz in (10, 11_500):
        made = augment.band_limit(tone(hertz, 2), rng())
        assert decibels(made) < decibels(tone(hertz, 2)) - 6


@pytest.mark.parametrize("length", [1, 2, 1920, 24_001])
def test_noise_has_unit_power(length: int) -> None:
    source = rng()
    for _ in range(20):
        made = augment.noise(length, source)
        assert made.shape == (length,)
        assert made.dtype == np.float32
        assert np.isfinite(made).all()
        if length > 1000:
            # A hum adds up to a quarter.
            assert -0.1 < decibels(made) < 1.5


def test_warp_changes_duration_and_pitch_together() -> None:
    made = augment.warp(tone(400, 2), 1.25)
    assert made.dtype == np.float32
    assert len(made) == pytest.approx(2 * voices.SAMPLE_RATE / 1.25, abs=2)
    assert strongest_hertz(made, voices.SAMPLE_RATE) == pytest.approx(500, abs=1)


def test_room_is_silence_or_quiet_noise() -> None:
    source = rng()
    rooms = [augment.room(4800, source) for _ in range(100)]
    silent = [room for room in rooms if not room.any()]
    assert 20 < len(silent) < 50
    assert all(-77 < decibels(room) < -35 for room in rooms if room.any())


@pytest.mark.parametrize(
    ("wanted", "got", "errors"),
    [
        ("One, two, three!", "1 2 3", 0),
        ("I cannot sing.", "i can not sing", 0),
        ("My favourite colour", "my favorite color", 0),
        ("The sky is blue.", "the sky was blue", 1),
        ("The sky is blue.", "sky is blue", 1),
        ("The sky is blue.", "the big sky is blue", 1),
        ("The sky is blue.", "", 4),
        ("", "nothing was wanted", 3),
        ("one two three", "three two one", 2),
    ],
)
def test_word_errors(wanted: str, got: str, errors: int) -> None:
    assert judge.word_errors(wanted, got) == (errors, len(judge.plain(wanted).split()))


def test_plain_text_has_neither_case_nor_punctuation() -> None:
    assert judge.plain("Well-known: it's Rome,  5 o'clock!") == "well known it's rome five o'clock"


def test_words_are_placed_at_the_frames_in_which_they_start() -> None:
    pad, mark = tokenizer.PADDING, tokenizer.END_OF_PADDING
    a, b, c = (LETTERS[letter] for letter in "abc")
    made = tokenizer.place_words([("a", 0.0), ("b", 0.17), ("c", 0.41)], 8, Letters())
    assert made.tolist() == [a, mark, b, pad, mark, c, pad, pad]


def test_a_word_waits_until_the_one_before_it_is_out() -> None:
    pad, mark = tokenizer.PADDING, tokenizer.END_OF_PADDING
    a, b, c = (LETTERS[letter] for letter in "abc")
    made = tokenizer.place_words([("abc", 0.1), ("b", 0.2)], 6, Letters())
    assert made.tolist() == [mark, a, b, c, b, pad]


def test_text_longer_than_its_speech_is_an_error() -> None:
    with pytest.raises(ValueError, match="does not fit its speech"):
        tokenizer.place_words([("abcd", 0.1)], 4, Letters())


def test_answers_start_half_a_second_after_the_question(composer: dialogues.Composer) -> None:
    turns = cut = 0
    for _ in range(30):
        made = composer.compose()
        user = np.abs(made.user).reshape(-1, FRAME).max(1)
        for place, turn in enumerate(made.turns):
            turns += 1
            # The user is heard in the frame of the end, and no more after it.
            assert user[turn.end] > 0.001
            assert user[turn.end + 1 : turn.end + 4].max() < 0.1 * user.max()
            at = turn.end + dialogues.REACTION_FRAMES
            expected = composer.answers[turn.question]
            # What the model is to say is known from the end of the question on.
            assert (made.speaker[turn.end : at + 5] == turn.question).all()
            assert not made.own[:, turn.end + 1 : at].any()
            # An answer that begins with a word has its mark in the frame before.
            assert made.tokens[at - 1] == tokenizer.END_OF_PADDING
            following = made.turns[place + 1].end if place + 1 < len(made.turns) else None
            whole = at + len(expected.tokens) <= (following or dialogues.DIALOGUE_FRAMES)
            spoken = made.own[:, at : at + expected.codes.shape[1]]
            if whole and np.array_equal(spoken, expected.codes):
                text = made.tokens[at : at + len(expected.tokens)]
                np.testing.assert_array_equal(text, expected.tokens)
            else:
                cut += 1
    assert turns > 60
    assert turns / 5 < cut < 4 * turns / 5


def test_the_box_greets_first_or_waits(composer: dialogues.Composer) -> None:
    first = dialogues.GREETING_FRAME
    greeted = [composer.compose().speaker[first] == dialogues.GREETING for _ in range(60)]
    assert 40 < sum(greeted) < 60


def test_an_interrupted_answer_fades_within_its_frames(composer: dialogues.Composer) -> None:
    answer = composer.answers[3]
    codes = composer._cut(answer, 5)
    assert codes.shape == (shapes.CODEBOOKS, 5 + dialogues.TAIL_FRAMES)
    assert codes[:, :5].all()
    assert not codes[:, 5:].any()


def test_the_box_is_silent_soon_after_an_interruption(composer: dialogues.Composer) -> None:
    interrupted = 0
    for _ in range(60):
        made = composer.compose()
        user = np.abs(made.user).reshape(-1, FRAME).max(1) > 0.01
        own = made.own[0] > 0
        onsets = np.flatnonzero(user[1:] & ~user[:-1]) + 1
        for onset in onsets:
            if own[onset]:
                interrupted += 1
                stop = onset + dialogues.YIELD_FRAMES + 1
                assert not own[stop : stop + 4].any()
    assert interrupted > 10


def test_conversations_survive_the_disk(tmp_path: Path, composer: dialogues.Composer) -> None:
    wanted = dialogues.batch_of(composer, 5)
    assert wanted.user.shape == wanted.own.shape == (5, shapes.CODEBOOKS, 400)
    wanted.save(tmp_path / "dialogues_0000.npz")
    assert [path.name for path in tmp_path.iterdir()] == ["dialogues_0000.npz"]
    found = dialogues.Batch.load(tmp_path / "dialogues_0000.npz")
    assert found.turns == wanted.turns
    for name in ("tokens", "own", "user", "speaker"):
        np.testing.assert_array_equal(getattr(found, name), getattr(wanted, name))


def test_a_question_of_the_evaluation_ends_where_it_says() -> None:
    silence = np.zeros(12_000, np.float32)
    sound = np.concatenate([silence, 0.1 * tone(400), silence])
    utterance = corpus.Utterance(sound, "question", "v", [], [])
    source, before_s = rng(), 0.5
    last = int((before_s + 1.5) * shapes.SAMPLE_RATE)
    for _ in range(20):
        channel, end = evaluate.mixed(utterance, before_s, 2.0, source)
        assert len(channel) % FRAME == 0
        # Reverberation makes it longer; its tail counts while it is loud.
        assert -100 < end - last < 0.35 * shapes.SAMPLE_RATE
        assert len(channel) - end >= 2.0 * shapes.SAMPLE_RATE


def test_text_after_a_sample_begins_with_its_frame() -> None:
    assert evaluate.text_after([" a", " b", " c"], FRAME) == "b c"
    assert evaluate.text_after([" a", " b", " c"], 2 * FRAME - 1) == "b c"


def test_spectral_distance_is_that_of_levels() -> None:
    noise = (corpus.SPEECH_RMS * np.random.default_rng(1).standard_normal(24_000)).astype(
        np.float32
    )
    assert evaluate.log_spectral_distance(noise, noise) == 0
    louder = evaluate.log_spectral_distance(1000 * noise, 100 * noise)
    assert louder == pytest.approx(20, abs=0.1)


def test_sizes_fit_the_official_layout() -> None:
    config = shapes.language_model(300)
    streams = 1 + config["n_q"]
    assert shapes.SAMPLE_RATE / shapes.FRAME_RATE == FRAME
    assert 2 * np.prod(shapes.CODEC["seanet"]["ratios"]) == FRAME
    assert len(config["delays"]) == streams == 17
    # The text and the semantic codebooks are on time, the acoustic ones a frame later.
    assert [place for place, delay in enumerate(config["delays"]) if delay == 0] == [0, 1, 9]
    assert set(config["delays"]) == {0, 1}
    assert len(config["depformer_weights_per_step_schedule"]) == config["dep_q"]
    assert config["card"] == shapes.CODEC["quantizer"]["bins"] <= 256
    assert config["dim"] % config["num_heads"] == 0


def test_the_language_model_fits_its_file() -> None:
    config = shapes.language_model(300)
    dim, card, text = config["dim"], config["card"], config["text_card"]
    depth = config["depformer_dim"]
    sets = len(set(config["depformer_weights_per_step_schedule"]))

    def layer(width: int, feed_forward: int) -> int:
        # Attention; a gated linear unit, whose width the official model cuts to two thirds.
        return 4 * width**2 + 3 * width * (2 * feed_forward // 3)

    temporal = config["num_layers"] * layer(dim, int(config["hidden_scale"] * dim))
    tables = config["n_q"] * (card + 1) * dim + (text + 1) * dim + text * dim
    depth_layers = config["depformer_num_layers"] * sets
    depth_layers *= layer(depth, config["depformer_dim_feedforward"])
    depth_tables = (config["dep_q"] - 1) * (card + 1) * depth + (text + 1) * depth
    depth_tables += config["dep_q"] * depth * card + sets * dim * depth
    total = temporal + tables + depth_layers + depth_tables
    assert total > 2_000_000
    assert 2 * total < 10_000_000


def test_the_learning_rate_rises_and_falls() -> None:
    first, full, last = (learning_rate(2.0, step, 100, step / 1000) for step in (0, 99, 1000))
    assert first == pytest.approx(0.02)
    assert full == pytest.approx(2.0, rel=0.03)
    assert last == pytest.approx(2.0 * LAST_PART)
    course = [learning_rate(2.0, step, 100, step / 1000) for step in range(100, 1001)]
    assert course == sorted(course, reverse=True)


def test_every_shard_is_made_once_from_the_same_file_by_any_number_of_processes() -> None:
    wanted = dict(dialogues.shards_of(0, 1, 160, 16))
    assert sorted(wanted) == list(range(160))
    assert set(wanted.values()) == set(range(16))
    for processes in (2, 3, 5, 16, 40):
        parts = [dialogues.shards_of(n, processes, 160, 16) for n in range(processes)]
        assert sorted(pair for part in parts for pair in part) == sorted(wanted.items())
        files = [{number for _, number in part} for part in parts]
        assert sum(map(len, files)) == 16, "no two processes write one file"


def test_there_are_no_more_files_than_shards() -> None:
    assert dialogues.shards_of(0, 1, 3, 16) == [(0, 0), (1, 1), (2, 2)]


def test_a_run_ends_with_its_steps_or_its_minutes() -> None:
    assert schedule.progress(0, 100, 0.0, None) == 0
    assert schedule.progress(50, 100, 1e9, None) == 0.5
    assert schedule.progress(10, 100, 90.0, 2.0) == 0.75
    assert schedule.progress(90, 100, 90.0, 2.0) == 0.9
    assert schedule.progress(100, 100, 0.0, 2.0) == schedule.progress(500, 100, 0.0, None) == 1


def test_recordings_of_other_questions_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "questions.npz"
    made = [corpus.Utterance(tone(300), f"text {number}", "v", [], []) for number in range(COUNT)]
    corpus.save_questions(path, made)
    loaded = corpus.load_questions(path)
    assert [u.question for u in loaded] == [q.name for q in phrases.QUESTIONS]
    corpus.save(path, loaded[1:])
    with pytest.raises(ValueError, match=r"questions\.npz was made from another list"):
        corpus.load_questions(path)


def test_the_documentation_names_the_stages_of_the_recipe() -> None:
    folder = Path(dialogues.__file__).parent
    text = (folder / "README.md").read_text()
    table = re.findall(r"^\| `(\w+)` \|", text.split("\n\n| voice |")[0], re.M)
    source = (folder / "run.py").read_text()
    stages = re.search(r"^STAGES = (\(.*?\))$", source, re.M | re.S)
    assert stages
    assert table == list(ast.literal_eval(stages[1]))
