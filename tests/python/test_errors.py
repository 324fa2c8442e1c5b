"""One test per kind of error: its class, its bases, and a message that helps."""

from __future__ import annotations

import shutil
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

import moshi_rs
from moshi_rs import errors
from support import DIALOGUE, FRAME, GOLDEN, Array, copy_case, edit_config, tensors

BASES = {
    errors.CapacityError: RuntimeError,
    errors.CheckpointError: Exception,
    errors.CheckpointNotFoundError: FileNotFoundError,
    errors.ConfigError: ValueError,
    errors.DeviceError: RuntimeError,
    errors.InputError: ValueError,
    errors.InternalError: RuntimeError,
    errors.ProtocolError: ValueError,
    errors.SessionError: RuntimeError,
}


def test_every_error_is_a_moshi_error_and_a_builtin_one() -> None:
    named = {getattr(errors, name) for name in errors.__all__}
    assert named == {*BASES, errors.MoshiError}
    for error, base in BASES.items():
        assert issubclass(error, errors.MoshiError)
        assert issubclass(error, base)
        assert getattr(moshi_rs, error.__name__) is error
        assert error.__doc__


def test_the_model_in_the_box_has_no_revisions() -> None:
    with pytest.raises(errors.ConfigError, match="only a hub has revisions, and no model is named"):
        moshi_rs.StreamingModel.load(revision="main")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"device": "tpu"}, 'device is "tpu"'),
        ({"dtype": "f64"}, 'one of "auto", "f32", "bf16"'),
        ({"kv_dtype": "q4"}, 'kv_dtype is "q4".*one of "auto", "f32", "bf16", "q8"'),
        ({"codec": "quick"}, "codec"),
        ({"revision": "main"}, "only a hub has revisions"),
    ],
)
def test_unknown_options_of_a_model(options: dict[str, Any], words: str) -> None:
    with pytest.raises(errors.ConfigError, match=words):
        moshi_rs.StreamingModel.load(DIALOGUE, **options)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"mode": "slow"}, 'one of "exact", "fast"'),
        ({"window": "wide"}, "window"),
        ({"parts": "none"}, "parts"),
        ({"device": "tpu"}, 'device is "tpu"'),
    ],
)
def test_unknown_options_of_a_codec(options: dict[str, Any], words: str) -> None:
    with pytest.raises(errors.ConfigError, match=words):
        moshi_rs.Mimi.load(GOLDEN / "mimi" / "mimi.safetensors", **options)


@pytest.mark.parametrize(
    "options",
    [
        {"num_codebooks": 0},
        {"num_codebooks": 13},
        {"num_codebooks": -1},
        {"window": 0},
        {"window": -3},
        {"window": 10**9},
        {"threads": 0},
        {"threads": -1},
    ],
)
def test_numbers_out_of_range_for_a_codec(options: dict[str, Any]) -> None:
    with pytest.raises(errors.InputError, match=next(iter(options))):
        moshi_rs.Mimi.load(GOLDEN / "mimi" / "mimi.safetensors", **options)


def test_unknown_config_value_names_field_value_and_file(tmp_path: Path) -> None:
    folder = copy_case("dialogue_repo", tmp_path / "model")
    edit_config(folder, norm="batch_norm")
    with pytest.raises(errors.ConfigError, match=r"field `norm` is .*batch_norm") as caught:
        moshi_rs.StreamingModel.load(folder)
    assert str(folder / "config.json") in str(caught.value)


def test_config_that_is_not_json(tmp_path: Path) -> None:
    folder = copy_case("dialogue_repo", tmp_path / "model")
    (folder / "config.json").write_text("{")
    with pytest.raises(errors.ConfigError, match="not valid JSON"):
        moshi_rs.StreamingModel.load(folder)


@pytest.mark.parametrize("name", ["model.safetensors", "mimi.safetensors", "tokenizer.model"])
def test_missing_file(tmp_path: Path, name: str) -> None:
    folder = copy_case("dialogue_repo", tmp_path / "model")
    (folder / name).unlink()
    with pytest.raises(FileNotFoundError, match=name) as caught:
        moshi_rs.StreamingModel.load(folder)
    assert isinstance(caught.value, errors.CheckpointNotFoundError)


def test_missing_folder_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(errors.CheckpointNotFoundError, match="expected a model folder"):
        moshi_rs.StreamingModel.load(tmp_path / "owner" / "repo")
    with pytest.raises(errors.CheckpointNotFoundError):
        moshi_rs.LanguageModel.load(tmp_path / "nothing")
    with pytest.raises(errors.CheckpointNotFoundError):
        moshi_rs.Mimi.load(tmp_path / "nothing.safetensors")


@pytest.mark.parametrize("keep", [0, 7, 100, 50_000])
def test_truncated_weights(tmp_path: Path, keep: int) -> None:
    folder = copy_case("dialogue_repo", tmp_path / "model")
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(errors.CheckpointError, match=r"model\.safetensors"):
        moshi_rs.StreamingModel.load(folder)


def test_weights_with_a_lying_header(tmp_path: Path) -> None:
    path = tmp_path / "mimi.safetensors"
    path.write_bytes(struct.pack("<Q", 2**63) + b"{}")
    with pytest.raises(errors.CheckpointError):
        moshi_rs.Mimi.load(path)


def safetensors_file(header: bytes, body: bytes = b"") -> bytes:
    return struct.pack("<Q", len(header)) + header + body


ONE = b'{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}'


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "0 bytes: truncated download"),
        (b"\xff" * 64, "too long"),
        (safetensors_file(b"[]"), "its header"),
        (safetensors_file(ONE, b"1234"), "tensor a ends at offset 8"),
        (safetensors_file(ONE.replace(b"[2]", b"[3]"), b"12345678"), r"tensor a is F32 \[3\]"),
        (safetensors_file(ONE.replace(b'"a"', b'"a\\n"')), "control characters"),
        (b"GGUF" + struct.pack("<IQQ", 1, 0, 0), "version 1 is not read"),
        (b"GGUF" + struct.pack("<IQQ", 3, 2**60, 0), "do not fit into a file"),
        (b"GGUF" + struct.pack("<IQQQ", 3, 0, 1, 2**60) + b"key 5", "a metadata key"),
    ],
)
def test_hostile_weights(tmp_path: Path, content: bytes, words: str) -> None:
    folder = copy_case("moshi", tmp_path / "model")
    (folder / "model.safetensors").write_bytes(content)
    with pytest.raises(errors.CheckpointError, match=words) as caught:
        moshi_rs.LanguageModel.load(folder)
    assert str(folder / "model.safetensors") in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "not valid JSON"),
        (b"[" * 9999, "recursion limit"),
        (b'{"dim": "\xff"}', "not UTF-8"),
        (b" " * 5_000_000, "5000000 bytes; at most"),
        (b'{"card": 1e300}', "field `card` is 1e"),
    ],
)
def test_hostile_configs(tmp_path: Path, content: bytes, words: str) -> None:
    folder = copy_case("moshi", tmp_path / "model")
    (folder / "config.json").write_bytes(content)
    with pytest.raises(errors.ConfigError, match=words) as caught:
        moshi_rs.LanguageModel.load(folder)
    assert str(folder / "config.json") in str(caught.value)


def test_all_wrong_tensors_are_listed_at_once(tmp_path: Path) -> None:
    folder = copy_case("moshi", tmp_path / "model")
    weights = tensors(folder / "model.safetensors")
    weights["out_norm.alpha"] = np.zeros((1, 1, 3), np.float32)
    weights["text_linear.weight"] = np.zeros((5, 7), np.float32)
    del weights["text_emb.weight"]
    weights["surplus.weight"] = np.zeros(2, np.float32)
    save_file(weights, folder / "model.safetensors")
    with pytest.raises(errors.CheckpointError) as caught:
        moshi_rs.LanguageModel.load(folder)
    message = str(caught.value)
    for words in (
        "2 of another shape",
        "out_norm.alpha",
        "text_linear.weight",
        "1 missing",
        "text_emb.weight",
        "1 unexpected",
        "surplus.weight",
    ):
        assert words in message


def test_tokenizer_that_is_none(tmp_path: Path) -> None:
    folder = copy_case("dialogue_repo", tmp_path / "model")
    for content in (b"", b"not a model", b"\x0a\xff\xff\xff\xff\x0f", bytes(range(256)) * 9):
        (folder / "tokenizer.model").write_bytes(content)
        with pytest.raises(errors.CheckpointError, match="SentencePiece"):
            moshi_rs.StreamingModel.load(folder)


def test_folder_of_codec_weights(tmp_path: Path) -> None:
    shutil.copyfile(GOLDEN / "mimi" / "mimi.safetensors", tmp_path / "mimi.safetensors")
    with pytest.raises(errors.CheckpointError, match="does not fit its config"):
        moshi_rs.Mimi.load(tmp_path / "mimi.safetensors")
    (tmp_path / "mimi_config.json").write_text("[]")
    with pytest.raises(errors.ConfigError, match=r"mimi_config\.json"):
        moshi_rs.Mimi.load(tmp_path / "mimi.safetensors")


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 3e38])
def test_samples_that_are_not_finite(
    model: moshi_rs.StreamingModel, mimi: moshi_rs.Mimi, value: float
) -> None:
    frame = np.zeros(FRAME, np.float32)
    frame[17] = value
    session, stream = model.new_session(seed=1), mimi.stream()
    for call in (session.step, session.push, stream.encode_step, mimi.encode):
        with pytest.raises(errors.InputError, match=r"index 17 is (not finite|above 1e6)"):
            call(frame)
    assert session.snapshot() == model.new_session(seed=1).snapshot()
    assert stream.snapshot() == mimi.stream().snapshot()


@pytest.mark.parametrize("samples", [0, 1, 1900, 1921])
def test_frame_of_a_wrong_length(
    model: moshi_rs.StreamingModel, mimi: moshi_rs.Mimi, samples: int
) -> None:
    frame = np.zeros(samples, np.float32)
    session = model.new_session()
    with pytest.raises(errors.InputError, match=f"{samples} samples.* exactly 1920"):
        session.step(frame)
    with pytest.raises(errors.InputError, match=f"{samples} samples"):
        mimi.stream().encode_step(frame)
    with pytest.raises(errors.InputError, match=f"{samples} samples"):
        moshi_rs.step_batch([session], [frame])


@pytest.mark.parametrize("shape", [(), (1, FRAME), (FRAME, 1), (1, 1, FRAME)])
def test_frame_of_a_wrong_shape(model: moshi_rs.StreamingModel, shape: tuple[int, ...]) -> None:
    with pytest.raises(errors.InputError, match="shape"):
        model.new_session().step(np.zeros(shape, np.float32))


WRONG_TYPES: list[Any] = [
    None,
    [0.0] * FRAME,
    b"\0" * FRAME * 4,
    "audio",
    np.zeros(FRAME, np.complex64),
    np.zeros(FRAME, np.int32),
    np.zeros(FRAME, np.uint16),
    np.zeros(FRAME, bool),
    np.zeros(FRAME, object),
    np.zeros(FRAME, "U1"),
    np.zeros(FRAME, "M8[s]"),
    np.zeros(FRAME, [("left", "f4")]),
]


@pytest.mark.parametrize("frame", WRONG_TYPES, ids=lambda x: str(getattr(x, "dtype", type(x))))
def test_frame_of_a_wrong_type(
    model: moshi_rs.StreamingModel, mimi: moshi_rs.Mimi, frame: object
) -> None:
    for call in (model.new_session().step, model.new_session().push, mimi.encode):
        with pytest.raises(TypeError):
            call(frame)  # type: ignore[arg-type]


def test_codes_out_of_range(mimi: moshi_rs.Mimi) -> None:
    for bad in (mimi.cardinality, -1, 2**40):
        codes = np.zeros((8, 3), np.int64)
        codes[2, 1] = bad
        with pytest.raises(errors.InputError, match=str(bad)):
            mimi.decode(codes)
        with pytest.raises(errors.InputError, match=str(bad)):
            mimi.stream().decode_step(codes[:, 1])
    for shape in ((9, 3), (0, 3), (3,), (1, 1, 8, 3)):
        with pytest.raises(errors.InputError, match="codes"):
            mimi.decode(np.zeros(shape, np.uint32))
    with pytest.raises(TypeError, match="integers"):
        mimi.decode(np.zeros((8, 3), np.float32))


def test_latents_of_a_wrong_shape(mimi: moshi_rs.Mimi) -> None:
    dim = mimi.decode_latent(np.zeros((8, 1), np.uint32)).shape[0]
    for shape in ((dim + 1, 2), (2, dim), (dim,), (1, 2, dim, 2)):
        with pytest.raises(errors.InputError, match="latent"):
            mimi.decode_from_latent(np.zeros(shape, np.float32))
    with pytest.raises(errors.InputError, match="not finite"):
        mimi.decode_from_latent(np.full((dim, 2), np.nan))


def test_tokens_out_of_range(lm: moshi_rs.LanguageModel) -> None:
    stream = lm.stream()
    for tokens in (
        [0] * 7,
        [0] * 7 + [lm.cardinality + 1],
        [-2] + [0] * 7,
        [2**70] + [0] * 7,
        np.zeros((8, 1), int),
        np.full(8, 2**64 - 1, np.uint64),
    ):
        with pytest.raises(errors.InputError, match="tokens"):
            stream.step(tokens)
    for wrong in ("tokens", 3, [0.5] * 8, np.zeros(8)):
        with pytest.raises(TypeError):
            stream.step(wrong)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "options",
    [
        {"temperature": -0.1},
        {"temperature": float("nan")},
        {"text_temperature": float("inf")},
        {"top_k": -1},
        {"top_k_text": 2**70},
        {"seed": -1},
        {"seed": 2**64},
        {"guidance": float("nan")},
        {"conditions": {"mood": "good"}},
    ],
)
def test_settings_out_of_range(
    model: moshi_rs.StreamingModel, lm: moshi_rs.LanguageModel, options: dict[str, Any]
) -> None:
    for call in (model.new_session, lm.stream):
        with pytest.raises(errors.InputError, match=next(iter(options))):
            call(**options)


@pytest.mark.parametrize("options", [{"seed": "7"}, {"top_k": 2.5}, {"conditions": {"mood": {3}}}])
def test_settings_of_a_wrong_type(
    model: moshi_rs.StreamingModel, lm: moshi_rs.LanguageModel, options: dict[str, Any]
) -> None:
    for call in (model.new_session, lm.stream):
        with pytest.raises(TypeError):
            call(**options)


def test_conditions_must_fit() -> None:
    hibiki = moshi_rs.LanguageModel.load(GOLDEN / "hibiki")
    with pytest.raises(errors.InputError, match="`description` is missing"):
        hibiki.stream()
    with pytest.raises(errors.InputError, match="very_good"):
        hibiki.stream(conditions={"description": "excellent"})
    with pytest.raises(errors.InputError, match="none or one of"):
        hibiki.stream(conditions={"description": np.zeros((2, 8), np.float32)})
    with pytest.raises(errors.InputError, match="guidance"):
        hibiki.stream(conditions={"description": None}, null_conditions={"description": None})
    tts = moshi_rs.LanguageModel.load(GOLDEN / "tts")
    texts = {"control": "ok", "cfg": "2.0"}
    for rows in (np.zeros((9, 23), np.float32), np.zeros(24), np.full((9, 24), np.inf)):
        with pytest.raises(errors.InputError, match="conditions"):
            tts.stream(conditions={**texts, "speaker_wavs": rows})
    with pytest.raises(errors.InputError, match="2 flags for 9 positions"):
        tts.stream(conditions={**texts, "speaker_wavs": (np.zeros((9, 24)), np.ones(2, bool))})


def test_conditions_may_change_while_they_are_read(lm: moshi_rs.LanguageModel) -> None:
    conditions: dict[str, Any] = {}

    class Meddling(np.ndarray[Any, Any]):
        def astype(self, *_: object) -> Array:
            conditions["late"] = None
            return np.zeros(self.shape, np.float32)

    conditions["early"] = np.zeros((2, 8)).view(Meddling)
    with pytest.raises(errors.InputError, match="early"):
        lm.stream(conditions=conditions)
    assert "late" in conditions


def test_results_that_nobody_pulls(model: moshi_rs.StreamingModel) -> None:
    session = model.new_session(seed=1)
    with pytest.raises(errors.CapacityError, match="750"):
        session.push(np.zeros(751 * FRAME, np.float32))
    assert session.push(np.zeros(FRAME, np.float32)) == 1


def test_step_in_the_middle_of_a_pushed_frame(
    model: moshi_rs.StreamingModel, frames: Array
) -> None:
    session = model.new_session()
    session.push(frames[0][:5])
    with pytest.raises(errors.SessionError, match="5 pushed samples"):
        session.step(frames[0])


def test_bad_batches(model: moshi_rs.StreamingModel, mimi: moshi_rs.Mimi, frames: Array) -> None:
    session = model.new_session(seed=1)
    with pytest.raises(errors.SessionError, match="twice"):
        moshi_rs.step_batch([session, session], frames[:2])
    with pytest.raises(errors.InputError, match="2 frames for 1 sessions"):
        moshi_rs.step_batch([session], frames[:2])
    other = moshi_rs.StreamingModel.load(DIALOGUE).new_session()
    with pytest.raises(errors.SessionError, match="same loaded model"):
        moshi_rs.step_batch([session, other], frames[:2])
    assert session.snapshot() == model.new_session(seed=1).snapshot()

    stream = mimi.stream()
    with pytest.raises(errors.SessionError, match="twice"):
        mimi.encode_step_batch([stream, stream], frames[:2])
    with pytest.raises(errors.InputError, match="2 frames for 1 streams"):
        mimi.encode_step_batch([stream], frames[:2])
    with pytest.raises(errors.InputError, match="exactly 1920"):
        mimi.encode_step_batch([stream, mimi.stream()], [frames[0][:1900], frames[0][:1940]])
    foreign = moshi_rs.Mimi.load(GOLDEN / "mimi" / "mimi.safetensors").stream()
    with pytest.raises(errors.SessionError, match="another loaded codec"):
        mimi.encode_step_batch([foreign], frames[:1])
    with pytest.raises(errors.InputError, match="2 rows for 1 streams"):
        mimi.decode_step_batch([stream], np.zeros((2, 8), np.uint32))
    assert stream.snapshot() == mimi.stream().snapshot()
