"""Shapes, dtypes and behaviour of the public calls."""

from __future__ import annotations

import logging
import signal
import subprocess
import sys
from pathlib import Path
from typing import Literal

import numpy as np
import pytest

import moshi_rs
import moshi_rs.cli
from support import DIALOGUE, FRAME, GOLDEN, GREEDY, Array, copy_case, run


@pytest.mark.parametrize("dtype", ["f32", "bf16", "q8", "q4"])
def test_every_storage_of_weights_runs(dtype: Literal["f32", "bf16", "q8", "q4"]) -> None:
    model = moshi_rs.StreamingModel.load(DIALOGUE, dtype=dtype)
    assert model.info()["dtype"] == dtype
    pcm, text = model.new_session(seed=1).step(np.zeros(model.frame_size, dtype=np.float32))
    assert np.isfinite(pcm).all()
    assert isinstance(text, str)


@pytest.mark.parametrize("kv_dtype", ["f32", "bf16", "q8"])
def test_every_storage_of_keys_runs(kv_dtype: Literal["f32", "bf16", "q8"]) -> None:
    model = moshi_rs.StreamingModel.load(DIALOGUE, kv_dtype=kv_dtype)
    assert model.info()["kv_dtype"] == kv_dtype
    session = model.new_session(seed=1)
    heard = np.random.default_rng(2).normal(0, 0.1, (9, model.frame_size)).astype(np.float32)
    for frame in heard[:5]:
        session.step(frame)
    restored = model.restore(session.snapshot())
    for frame in heard[5:]:
        (pcm, text), (again, same) = session.step(frame), restored.step(frame)
        assert np.array_equal(pcm, again)
        assert text == same
    lm = moshi_rs.LanguageModel.load(DIALOGUE, kv_dtype=kv_dtype)
    assert lm.kv_dtype == kv_dtype
    assert np.isfinite(lm.stream(seed=1).step([0] * lm.num_user_codebooks).logits).all()


def test_a_weights_file_is_a_model() -> None:
    by_file = moshi_rs.LanguageModel.load(DIALOGUE / "model.safetensors")
    by_folder = moshi_rs.LanguageModel.load(DIALOGUE)
    tokens = [0] * by_file.num_user_codebooks
    one, other = (lm.stream(seed=1).step(tokens) for lm in (by_file, by_folder))
    assert (one.logits == other.logits).all()


def test_step_gives_a_frame_and_text(model: moshi_rs.StreamingModel, frames: Array) -> None:
    pcm, text = model.step(frames[0])
    assert pcm.dtype == np.float32
    assert pcm.shape == (model.frame_size,)
    assert pcm.flags.c_contiguous
    assert isinstance(text, str)
    assert np.any(pcm != 0), "a model with a delay of one frame answers the first frame"


def test_properties_are_those_of_the_config(model: moshi_rs.StreamingModel) -> None:
    assert model.frame_size == FRAME
    assert model.sample_rate == 24_000
    assert model.frame_rate == 12.5
    assert model.latency_frames == 1
    assert model.device == "cpu"
    info = model.info()
    assert info["model_type"] == "moshi"
    assert (info["dtype"], info["kv_dtype"]) == ("f32", "f32")
    assert info["frame_size"] == FRAME
    assert info["num_codebooks"] == 16
    assert info["conditions"] == []
    assert info["sampling"] == {
        "temperature": 0.8,
        "text_temperature": 0.7,
        "top_k": 250,
        "top_k_text": 25,
        "guidance": 1.0,
    }


def test_load_takes_text_paths_and_every_option() -> None:
    model = moshi_rs.StreamingModel.load(
        str(DIALOGUE), device="cpu", dtype="bf16", kv_dtype="f32", seed=3, threads=16
    )
    assert model.info()["dtype"] == "bf16"
    assert model.step(np.zeros(FRAME, np.float32))[0].shape == (FRAME,)


def test_default_session_has_the_seed_of_load(frames: Array) -> None:
    model = moshi_rs.StreamingModel.load(DIALOGUE, seed=11)
    pcm, texts = run(model.new_session(seed=11), frames[:6])
    for frame, want_pcm, want_text in zip(frames, pcm, texts, strict=False):
        got_pcm, got_text = model.step(frame)
        np.testing.assert_array_equal(got_pcm, want_pcm)
        assert got_text == want_text


def test_sample_formats_are_equivalent(model: moshi_rs.StreamingModel) -> None:
    pcm16 = np.random.default_rng(0).integers(-20_000, 20_000, FRAME).astype(np.int16)
    pcm32 = pcm16.astype(np.float32) / 32_768
    strided = np.zeros(2 * FRAME, np.float32)
    strided[::2] = pcm32
    unaligned = np.frombuffer(b"\0" + pcm32.tobytes(), np.uint8)[1:].view(np.float32)
    read_only = pcm32.copy()
    read_only.flags.writeable = False
    want, _ = model.new_session(seed=1).step(pcm32)
    variants = {
        "int16": pcm16,
        "float64": pcm32.astype(np.float64),
        "big endian": pcm32.astype(">f4"),
        "strided": strided[::2],
        "reversed twice": pcm32[::-1].copy()[::-1],
        "unaligned": unaligned,
        "read-only": read_only,
    }
    for name, variant in variants.items():
        got, _ = model.new_session(seed=1).step(variant)
        np.testing.assert_array_equal(got, want, err_msg=name)


def test_input_arrays_stay_as_they_are(model: moshi_rs.StreamingModel, frames: Array) -> None:
    frame = frames[1].copy()
    pcm, _ = model.new_session(seed=1).step(frame)
    np.testing.assert_array_equal(frame, frames[1])
    kept = pcm.copy()
    model.new_session(seed=1).step(frame * 0.5)
    np.testing.assert_array_equal(pcm, kept)


def test_seed_is_drawn_and_shown(model: moshi_rs.StreamingModel) -> None:
    seeds = {model.new_session().seed for _ in range(8)}
    assert len(seeds) == 8
    assert model.new_session(seed=2**64 - 1).seed == 2**64 - 1


def test_push_and_pull(model: moshi_rs.StreamingModel, frames: Array) -> None:
    session = model.new_session(seed=5)
    assert session.pull() is None
    assert session.push(frames[0][:1000]) == 0
    assert session.pull() is None
    assert session.push(np.concatenate([frames[0][1000:], frames[1], frames[2][:1]])) == 2
    first, second = session.pull(), session.pull()
    assert session.pull() is None
    pcm, texts = run(model.new_session(seed=5), frames[:2])
    for got, want_pcm, want_text in zip((first, second), pcm, texts, strict=True):
        assert got is not None
        np.testing.assert_array_equal(got[0], want_pcm)
        assert got[1] == want_text


def test_reset_equals_a_new_session(model: moshi_rs.StreamingModel, frames: Array) -> None:
    session = model.new_session(seed=5)
    run(session, frames[10:20])
    session.push(frames[0][:7])
    session.reset()
    got, want = run(session, frames[:5]), run(model.new_session(seed=5), frames[:5])
    np.testing.assert_array_equal(got[0], want[0])
    assert got[1] == want[1]


def test_step_batch_takes_lists_and_matrices(model: moshi_rs.StreamingModel, frames: Array) -> None:
    by_list = moshi_rs.step_batch(
        [model.new_session(seed=i) for i in range(3)], [frames[0], frames[1], frames[2]]
    )
    by_matrix = moshi_rs.step_batch([model.new_session(seed=i) for i in range(3)], frames[:3])
    assert len(by_list) == len(by_matrix) == 3
    for left, right in zip(by_list, by_matrix, strict=True):
        np.testing.assert_array_equal(left[0], right[0])
        assert left[1] == right[1]
    assert moshi_rs.step_batch([], []) == []


def test_codec_shapes(mimi: moshi_rs.Mimi, codec_pcm: Array) -> None:
    codes = mimi.encode(codec_pcm[: 3 * FRAME + 5])
    assert codes.dtype == np.uint32
    assert codes.shape == (8, 4)
    assert codes.flags.c_contiguous
    assert int(codes.max()) < mimi.cardinality
    pcm = mimi.decode(codes)
    assert pcm.dtype == np.float32
    assert pcm.shape == (4 * FRAME,)
    latent = mimi.decode_latent(codes)
    assert latent.shape[1] == 4
    assert mimi.encode(np.zeros(0, np.float32)).shape == (8, 0)
    assert mimi.decode(np.zeros((8, 0), np.uint32)).shape == (0,)


def test_codec_batches_equal_single_recordings(mimi: moshi_rs.Mimi, codec_pcm: Array) -> None:
    batch = codec_pcm[: 8 * FRAME].reshape(2, 1, 4 * FRAME)
    codes = mimi.encode(batch)
    assert codes.shape == (2, 8, 4)
    pcm = mimi.decode(codes)
    assert pcm.shape == (2, 1, 4 * FRAME)
    latent = mimi.encode_to_latent(batch)
    quantised = mimi.encode_to_latent(batch, quantize=True)
    assert latent.shape == quantised.shape == (2, latent.shape[1], 4)
    for i in range(2):
        np.testing.assert_array_equal(codes[i], mimi.encode(batch[i, 0]))
        np.testing.assert_array_equal(pcm[i, 0], mimi.decode(codes[i]))
        np.testing.assert_array_equal(latent[i], mimi.encode_to_latent(batch[i, 0]))
        np.testing.assert_array_equal(quantised[i], mimi.decode_latent(codes[i]))
    np.testing.assert_array_equal(mimi.decode_latent(codes), quantised)
    np.testing.assert_array_equal(mimi.decode_from_latent(quantised), pcm)


def test_codec_takes_integers_of_any_width(mimi: moshi_rs.Mimi, codec_pcm: Array) -> None:
    codes = mimi.encode(codec_pcm[: 2 * FRAME])
    want = mimi.decode(codes)
    for dtype in (np.int64, np.int32, np.uint16, np.int16, np.uint64):
        np.testing.assert_array_equal(mimi.decode(codes.astype(dtype)), want)
    np.testing.assert_array_equal(mimi.decode(np.asfortranarray(codes)), want)


def test_fewer_codebooks_are_a_prefix(mimi: moshi_rs.Mimi, codec_pcm: Array) -> None:
    path = GOLDEN / "mimi" / "mimi.safetensors"
    four = moshi_rs.Mimi.load(path, num_codebooks=4)
    assert (four.num_codebooks, four.total_codebooks) == (4, 12)
    codes = mimi.encode(codec_pcm)
    np.testing.assert_array_equal(four.encode(codec_pcm), codes[:4])
    np.testing.assert_array_equal(four.decode(codes[:4]), mimi.decode(codes[:4]))


def test_codec_properties(mimi: moshi_rs.Mimi) -> None:
    assert (mimi.sample_rate, mimi.frame_rate, mimi.frame_size) == (24_000, 12.5, FRAME)
    assert (mimi.num_codebooks, mimi.total_codebooks) == (8, 12)


def test_codec_loads_from_a_model_folder(frames: Array) -> None:
    from_folder = moshi_rs.Mimi.load(DIALOGUE)
    from_file = moshi_rs.Mimi.load(DIALOGUE / "mimi.safetensors")
    pcm = frames[:4].reshape(-1)
    np.testing.assert_array_equal(from_folder.encode(pcm), from_file.encode(pcm))


def test_windows_differ_once_they_are_full(mimi: moshi_rs.Mimi, codec_pcm: Array) -> None:
    path = GOLDEN / "mimi" / "mimi.safetensors"
    codes = mimi.encode(codec_pcm)

    def streamed(codec: moshi_rs.Mimi) -> Array:
        stream = codec.stream()
        return np.concatenate([stream.decode_step(column) for column in codes.T])

    # Attention sums over past positions in two parts where its ring wraps around, and rings of
    # streaming and of whole recordings differ in size: equal up to the rounding of those sums.
    exact = moshi_rs.Mimi.load(path, window="exact")
    np.testing.assert_allclose(streamed(exact), exact.decode(codes), rtol=0, atol=1e-4)
    assert np.any(streamed(mimi) != streamed(exact))
    wide = moshi_rs.Mimi.load(path, window=251)
    np.testing.assert_allclose(streamed(wide), wide.decode(codes), rtol=0, atol=1e-4)
    assert np.any(wide.decode(codes) != exact.decode(codes))


def test_halves_of_the_codec(mimi: moshi_rs.Mimi, codec_pcm: Array) -> None:
    path = GOLDEN / "mimi" / "mimi.safetensors"
    encoder = moshi_rs.Mimi.load(path, parts="encoder")
    decoder = moshi_rs.Mimi.load(path, parts="decoder")
    codes = encoder.encode(codec_pcm[: 3 * FRAME])
    np.testing.assert_array_equal(codes, mimi.encode(codec_pcm[: 3 * FRAME]))
    np.testing.assert_array_equal(decoder.decode(codes), mimi.decode(codes))
    column = decoder.stream().decode_step(codes[:, 0])
    assert column.shape == (FRAME,)
    for call in (
        lambda: encoder.decode(codes),
        lambda: decoder.encode(codec_pcm),
        lambda: encoder.stream().decode_step(codes[:, 0]),
        lambda: decoder.stream().encode_step(codec_pcm[:FRAME]),
    ):
        with pytest.raises(moshi_rs.SessionError, match=r"without its (encoder|decoder)"):
            call()


def test_language_model_step(lm: moshi_rs.LanguageModel) -> None:
    assert (lm.num_codebooks, lm.num_generated, lm.num_user_codebooks) == (16, 8, 8)
    assert lm.dtype == "f32"
    assert len(lm.delays) == 17
    stream = lm.stream(seed=1)
    first = stream.step([0] * 8)
    assert first.tokens is None
    assert first.audio_tokens.shape == (8,)
    second = stream.step(np.zeros(8, np.int64))
    assert second.tokens is not None
    assert second.tokens.dtype == np.int64
    assert second.tokens.shape == (9,)
    assert second.logits.dtype == np.float32
    assert second.logits.shape == (lm.text_cardinality,)
    assert second.heads.shape == (0, 0)
    assert second.tokens[0] == first.text_token


def test_forced_tokens_replace_sampled_ones(lm: moshi_rs.LanguageModel) -> None:
    stream = lm.stream(**GREEDY)
    audio = np.arange(8) + 3
    steps = [stream.step([1] * 8, text=7, audio=audio) for _ in range(4)]
    assert [step.text_token for step in steps] == [7] * 4
    for step in steps:
        np.testing.assert_array_equal(step.audio_tokens, audio)
    assert steps[-1].tokens is not None
    np.testing.assert_array_equal(steps[-1].tokens, [7, *audio])
    free = lm.stream(**GREEDY)
    outputs = [free.step([1] * 8) for _ in range(4)]
    np.testing.assert_array_equal(outputs[0].logits, steps[0].logits)
    assert np.any(outputs[-1].logits != steps[-1].logits)


def test_a_refused_forced_token_changes_nothing(lm: moshi_rs.LanguageModel) -> None:
    stream, twin = lm.stream(seed=2), lm.stream(seed=2)
    for t in range(6):
        for bad in ({"text": 10_000}, {"audio": [0] * 7}, {"audio": [10_000] * 8}):
            with pytest.raises(moshi_rs.InputError):
                stream.step([t] * 8, **bad)
        got, want = stream.step([t] * 8), twin.step([t] * 8)
        np.testing.assert_array_equal(got.logits, want.logits)
        np.testing.assert_array_equal(got.audio_tokens, want.audio_tokens)


def test_representations_say_what_an_object_is(
    model: moshi_rs.StreamingModel, mimi: moshi_rs.Mimi, lm: moshi_rs.LanguageModel
) -> None:
    session, stream, codec_stream = model.new_session(seed=4), lm.stream(seed=9), mimi.stream()
    step = stream.step([0] * 8, text=3)
    shown = f"StreamingModel(\"{DIALOGUE}\", model_type='moshi', device='cpu', dtype='f32')"
    assert repr(model) == shown
    assert repr(session) == "Session(seed=4)"
    assert repr(mimi).startswith("Mimi(num_codebooks=8, total_codebooks=12, ")
    assert repr(codec_stream) == "MimiStream(num_codebooks=8)"
    assert repr(lm).startswith("LanguageModel(model_type='moshi', num_codebooks=16, ")
    assert repr(stream) == "LmStream(seed=9)"
    assert repr(step) == "LmStep(tokens=None, text_token=3)"


def test_log_records_reach_python(caplog: pytest.LogCaptureFixture, tmp_path: Path) -> None:
    with caplog.at_level(logging.INFO, logger="moshi_rs"):
        moshi_rs.StreamingModel.load(copy_case("dialogue_repo", tmp_path / "100% %s"))
    messages = [r.getMessage() for r in caplog.records if r.name == "moshi_rs"]
    assert any("loaded" in message and "100% %s" in message for message in messages)
    caplog.clear()
    with caplog.at_level(logging.ERROR, logger="moshi_rs"):
        moshi_rs.StreamingModel.load(DIALOGUE)
    assert caplog.records == []


def test_command_line_runs_as_a_module() -> None:
    def run_module(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "moshi_rs", *arguments],
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
        )

    version = run_module("--version")
    assert version.returncode == 0
    assert moshi_rs.__version__ in version.stdout
    assert "Usage" in run_module("--help").stdout
    assert run_module("no-such-command").returncode == 2


def test_interrupts_end_the_command_line(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[object] = []

    def command(arguments: list[str], _chat: object) -> int:
        seen.extend([arguments, signal.getsignal(signal.SIGINT)])
        return 3

    monkeypatch.setattr(moshi_rs.cli, "cli_main", command)
    before = signal.getsignal(signal.SIGINT)
    assert moshi_rs.cli.main(["info", "x"]) == 3
    assert seen == [["moshi-rs", "info", "x"], signal.SIG_DFL]
    assert signal.getsignal(signal.SIGINT) is before
