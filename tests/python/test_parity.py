"""Agreement with the reference cases in ``tests/golden``."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

import moshi_rs
from support import (
    DIALOGUE,
    FRAME,
    GOLDEN,
    GREEDY,
    Array,
    assert_close_logits,
    expected,
    notes,
    snr_db,
    tensors,
)

if TYPE_CHECKING:
    from pathlib import Path

LANGUAGE_MODELS = ["moshi", "hibiki", "stt", "tts", "kv_repeat"]


def stream_options(case: str) -> dict[str, Any]:
    """Conditions and guidance that the notes of a case name."""
    note = notes(case)
    conditions = dict(note.get("conditions", {}))
    for name, source in note.get("tensor_conditions", {}).items():
        file = tensors(GOLDEN / case / source["file"])
        conditions[name] = (file[source["tensor"]][0], file[source["mask"]][0])
    options: dict[str, Any] = {"conditions": conditions, "guidance": note.get("cfg_coef")}
    if "null_conditions" in note:
        options["null_conditions"] = note["null_conditions"]
    return options


def check_language_model(folder: Path, want: dict[str, Array], options: dict[str, Any]) -> None:
    stream = moshi_rs.LanguageModel.load(folder, dtype="f32").stream(**options, **GREEDY)
    user = want["user_tokens"][0]
    rows, logits, heads = [], [], []
    for tokens in user.T:
        step = stream.step(tokens)
        logits.append(step.logits)
        heads.append(step.heads)
        if step.tokens is not None:
            rows.append(step.tokens)
    np.testing.assert_array_equal(np.stack(rows, axis=1), want["tokens"][0])
    assert_close_logits(np.stack(logits), want["text_logits"])
    if "extra_heads" in want:
        np.testing.assert_allclose(np.stack(heads), want["extra_heads"], atol=1e-5)
    else:
        assert heads[0].size == 0


@pytest.mark.parametrize("case", LANGUAGE_MODELS)
def test_language_model(case: str) -> None:
    check_language_model(GOLDEN / case, expected(case), stream_options(case))


def test_language_model_with_adapter(tmp_path: Path) -> None:
    for name in ("model.safetensors", "lora.safetensors"):
        shutil.copyfile(GOLDEN / "moshi" / name, tmp_path / name)
    shutil.copyfile(GOLDEN / "moshi" / "config_lora.json", tmp_path / "config.json")
    want = expected("moshi", "expected_lora.safetensors")
    check_language_model(tmp_path, want, {})


def test_codec_offline(mimi: moshi_rs.Mimi) -> None:
    want = expected("mimi")
    pcm, codes = want["pcm"], want["codes"]
    np.testing.assert_array_equal(mimi.encode(pcm), codes)
    ragged = pcm[0, 0, : 5 * FRAME + 777]
    np.testing.assert_array_equal(mimi.encode(ragged), want["ragged_codes"][0])
    assert snr_db(mimi.decode(codes), want["decoded"]) >= 60
    assert snr_db(mimi.encode_to_latent(pcm), want["latent"]) >= 60
    quantised = mimi.encode_to_latent(pcm, quantize=True)
    assert snr_db(quantised, want["latent_quantised"]) >= 60
    assert snr_db(mimi.decode_latent(codes), want["latent_quantised"]) >= 60
    assert snr_db(mimi.decode_from_latent(want["latent_quantised"]), want["decoded"]) >= 60


def test_codec_streaming(mimi: moshi_rs.Mimi) -> None:
    want = expected("mimi")
    stream = mimi.stream()
    codes, pcm = [], []
    for frame in want["pcm"].reshape(-1, FRAME):
        codes.append(stream.encode_step(frame))
        pcm.append(stream.decode_step(codes[-1]))
    np.testing.assert_array_equal(np.stack(codes, axis=1), want["stream_codes"][0])
    assert snr_db(np.concatenate(pcm), want["stream_decoded"][0, 0]) >= 60


def test_codec_slots_out_of_step(mimi: moshi_rs.Mimi) -> None:
    want = expected("mimi")
    pcm = want["batch_pcm"].reshape(2, -1, FRAME)
    streams = [mimi.stream(), mimi.stream()]
    compared = 0
    for t in range(pcm.shape[1]):
        if t == 9:
            streams[0].reset()
        active = [0, 1] if t % 2 == 0 else [0]
        chosen = [streams[slot] for slot in active]
        codes = mimi.encode_step_batch(chosen, pcm[active, t])
        decoded = mimi.decode_step_batch(chosen, codes)
        for row, slot in enumerate(active):
            np.testing.assert_array_equal(codes[row], want["batch_codes"][slot, :, t])
            reference = want["batch_decoded"][slot, 0, t * FRAME : (t + 1) * FRAME]
            assert snr_db(decoded[row], reference) >= 60
            compared += 1
    assert compared == 24


def test_dialogue_from_its_parts(frames: Array) -> None:
    want = expected("dialogue_repo")
    stream = moshi_rs.Mimi.load(DIALOGUE).stream()
    lm = moshi_rs.LanguageModel.load(DIALOGUE).stream(**GREEDY)
    codes, rows, pcm = [], [], []
    for frame in frames:
        codes.append(stream.encode_step(frame))
        row = lm.step(codes[-1]).tokens
        if row is not None:
            rows.append(row)
            pcm.append(stream.decode_step(row[1:]))
    np.testing.assert_array_equal(np.stack(codes, axis=1), want["user_codes"][0])
    np.testing.assert_array_equal(np.stack(rows, axis=1), want["tokens"][0])
    assert snr_db(np.concatenate(pcm), want["pcm_out"][0, 0]) >= 60


def test_streaming_model_is_its_parts_in_a_row(
    model: moshi_rs.StreamingModel, frames: Array
) -> None:
    """One step that hears nothing, then encode, language model, decode."""
    want = expected("dialogue_repo")
    # The reference lists a text per step and a token per step but the first.
    text_of = dict(
        zip(want["tokens"][0, 0].tolist(), notes("dialogue_repo")["text"][1:], strict=True)
    )
    stream = moshi_rs.Mimi.load(DIALOGUE).stream()
    lm = moshi_rs.LanguageModel.load(DIALOGUE).stream(**GREEDY)
    assert lm.step([-1] * 8).tokens is None
    session = model.new_session(**GREEDY)
    known = 0
    for frame in frames:
        pcm, text = session.step(frame)
        row = lm.step(stream.encode_step(frame)).tokens
        assert row is not None
        np.testing.assert_array_equal(pcm, stream.decode_step(row[1:]))
        if int(row[0]) in text_of:
            assert text == text_of[int(row[0])]
            known += 1
    assert known >= 40
