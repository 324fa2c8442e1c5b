"""The model in the box: the default of every load and command, and equal to its files on disk."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
from typing import TYPE_CHECKING, Literal

import numpy as np
import pytest

import moshi_rs
from moshi_rs import errors
from support import DIALOGUE, REPOSITORY, Array

if TYPE_CHECKING:
    from pathlib import Path

FOLDER = REPOSITORY / "rust" / "moshi-box" / "checkpoint"
HELLO = REPOSITORY / "tests" / "audio" / "hello.wav"
LABEL = "<model in the box>"


def steps(session: moshi_rs.Session, heard: Array) -> tuple[Array, list[str]]:
    """Audio ``[frame, sample]`` and texts."""
    outputs = [session.step(frame) for frame in heard]
    return np.array([pcm for pcm, _ in outputs]), [text for _, text in outputs]


def noise(model: moshi_rs.StreamingModel, frames: int, seed: int) -> Array:
    shape = (frames, model.frame_size)
    return np.random.default_rng(seed).normal(0, 0.1, shape).astype(np.float32)


@pytest.mark.parametrize("dtype", ["auto", "f32", "bf16", "q8", "q4"])
def test_it_speaks_as_its_files_do(dtype: Literal["auto", "f32", "bf16", "q8", "q4"]) -> None:
    in_box = moshi_rs.StreamingModel.load(dtype=dtype)
    on_disk = moshi_rs.StreamingModel.load(FOLDER, dtype=dtype)
    # Long enough for the greeting.
    heard = 0.01 * noise(in_box, 30, 1)
    pcm, texts = steps(in_box.new_session(seed=3), heard)
    expected_pcm, expected_texts = steps(on_disk.new_session(seed=3), heard)
    assert np.array_equal(pcm, expected_pcm)
    assert texts == expected_texts
    assert len("".join(texts).split()) >= 3
    assert np.abs(pcm).max() > 0.05

    facts, expected_facts = in_box.info(), on_disk.info()
    assert facts.pop("source") == LABEL
    assert expected_facts.pop("source") == str(FOLDER)
    assert facts == expected_facts


def test_a_snapshot_goes_on_with_another_load() -> None:
    model = moshi_rs.StreamingModel.load(None)
    heard = noise(model, 4, 2)
    session = model.new_session(seed=5)
    steps(session, heard)
    blob = session.snapshot()
    expected = steps(session, heard)
    for other in (moshi_rs.StreamingModel.load(None), moshi_rs.StreamingModel.load(FOLDER)):
        pcm, texts = steps(other.restore(blob), heard)
        assert np.array_equal(pcm, expected[0])
        assert texts == expected[1]
    rounded = moshi_rs.StreamingModel.load(dtype="q8")
    with pytest.raises(moshi_rs.InputError, match="other load options"):
        rounded.restore(blob)


def test_codec_and_language_model_are_in_it() -> None:
    count = json.loads((FOLDER / "mimi_config.json").read_text())["quantizer"]["n_q"]
    codecs = [moshi_rs.Mimi.load(path, num_codebooks=count) for path in (None, FOLDER)]
    pcm = np.random.default_rng(3).normal(0, 0.1, 3 * codecs[0].frame_size).astype(np.float32)
    codes, expected_codes = (codec.encode(pcm) for codec in codecs)
    assert np.array_equal(codes, expected_codes)
    speech, expected_speech = (codec.decode(codes) for codec in codecs)
    assert np.array_equal(speech, expected_speech)

    models = [moshi_rs.LanguageModel.load(path) for path in (None, FOLDER)]
    tokens = [0] * models[0].num_user_codebooks
    one, other = (lm.stream(seed=1).step(tokens) for lm in models)
    assert np.array_equal(one.logits, other.logits)


def test_it_is_named_in_the_log(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, logger="moshi_rs"):
        moshi_rs.StreamingModel.load()
    assert f"no model is named: taking {LABEL}" in caplog.messages
    assert any(message.startswith(f"loaded {LABEL}") for message in caplog.messages)


def command(folder: Path, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """The command line in an empty folder, with no network and nowhere else to write."""
    return subprocess.run(
        [sys.executable, "-m", "moshi_rs", *map(str, arguments)],
        capture_output=True,
        check=False,
        cwd=folder,
        env={**os.environ, "TMPDIR": str(folder), "HOME": str(folder), "HF_HUB_OFFLINE": "1"},
        text=True,
        encoding="utf-8",
    )


@pytest.mark.parametrize("executor", ["scalar", "candle"])
@pytest.mark.parametrize("dtype", ["f32", "bf16"])
def test_commands_take_it(executor: str, dtype: str, tmp_path: Path) -> None:
    how = ["--json", "--seed", "4", "--executor", executor, "--dtype", dtype, "--pad", "3"]
    unnamed = command(tmp_path, "run", HELLO, *how)
    named = command(tmp_path, "run", HELLO, *how, "--model", FOLDER)
    assert (named.returncode, unnamed.returncode) == (0, 0), unnamed.stderr
    results = [json.loads(done.stdout) for done in (named, unnamed)]
    assert results[0]["text"] == results[1]["text"]
    assert len(results[0]["text"].split()) > 2
    assert [result["model"] for result in results] == [str(FOLDER), LABEL]
    assert not list(tmp_path.iterdir()), "nothing is written"


def test_audio_and_codes_pass_through_it(tmp_path: Path) -> None:
    encoded = command(tmp_path, "-v", "encode", HELLO, "-o", "codes.safetensors")
    assert encoded.returncode == 0, encoded.stderr
    assert LABEL in encoded.stderr
    decoded = command(tmp_path, "decode", "codes.safetensors", "-o", "again.wav")
    assert decoded.returncode == 0, decoded.stderr
    assert {path.name for path in tmp_path.iterdir()} == {"codes.safetensors", "again.wav"}


def test_info_describes_it(tmp_path: Path) -> None:
    shown = command(tmp_path, "info")
    assert shown.returncode == 0, shown.stderr
    assert f"folder: {LABEL}" in shown.stdout.splitlines()

    facts = json.loads(command(tmp_path, "info", "--json").stdout)
    expected = json.loads(command(tmp_path, "info", "--json", FOLDER).stdout)
    assert facts == json.loads(json.dumps(expected).replace(str(FOLDER), LABEL))
    assert facts["origin"]["license"], "its card states a licence"
    assert facts["origin"]["license_file"] == "LICENSE"
    assert facts["language_model"]["bytes"] == (FOLDER / "model.safetensors").stat().st_size


def test_its_card_is_shown(tmp_path: Path) -> None:
    shown = command(tmp_path, "info", "--card")
    assert shown.returncode == 0, shown.stderr
    assert shown.stdout.startswith("# The model in the box\n")
    assert "The capital of France is Paris." in shown.stdout
    named = command(tmp_path, "info", "--card", FOLDER / "model.safetensors")
    assert named.stdout == shown.stdout

    (tmp_path / "empty").mkdir()
    missing = command(tmp_path, "info", "--card", "empty")
    assert missing.returncode == 5
    assert "empty has no model card" in missing.stderr
    both = command(tmp_path, "info", "--card", "--json")
    assert both.returncode == 2


def test_codes_of_another_codec_are_told_apart(tmp_path: Path) -> None:
    for name, model in (("own", FOLDER), ("other", DIALOGUE)):
        done = command(tmp_path, "encode", HELLO, "-o", f"{name}.safetensors", "--model", model)
        assert done.returncode == 0, done.stderr
    own = command(tmp_path, "decode", "own.safetensors", "-o", "own.wav")
    assert (own.returncode, own.stderr) == (0, "")
    other = command(tmp_path, "decode", "other.safetensors", "-o", "other.wav")
    assert f"other.safetensors was made by {DIALOGUE}" in other.stderr
    assert "name the codec with --model" in other.stderr


def test_an_empty_name_is_no_model() -> None:
    for load in (
        moshi_rs.StreamingModel.load,
        moshi_rs.Mimi.load,
        moshi_rs.LanguageModel.load,
    ):
        with pytest.raises(errors.ConfigError, match=r'`model` is "": expected a folder'):
            load("")


def test_it_is_named_where_it_is_printed() -> None:
    assert repr(moshi_rs.StreamingModel.load()).startswith(f'StreamingModel("{LABEL}", ')


def test_help_teaches_it(tmp_path: Path) -> None:
    for arguments in ([], ["run"], ["chat"], ["encode"], ["decode"], ["info"]):
        shown = command(tmp_path, *arguments, "--help").stdout
        assert "in the box" in " ".join(shown.split()), arguments
