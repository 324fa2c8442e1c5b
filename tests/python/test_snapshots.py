"""Snapshots: exact continuation, and bytes that nobody vouches for."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest

import moshi_rs
from support import (
    DIALOGUE,
    FRAME,
    GOLDEN,
    SNAPSHOT_CHECKSUM,
    SNAPSHOT_HEADER,
    Array,
    run,
    seal,
)

if TYPE_CHECKING:
    from collections.abc import Callable


def test_session_continues_exactly(model: moshi_rs.StreamingModel, frames: Array) -> None:
    for cut in (0, 1, 17, 40):
        session = model.new_session(seed=3)
        run(session, frames[:cut])
        blob, fork = session.snapshot(), session.fork()
        assert fork.seed == 3
        want = run(session, frames[cut:])
        for other in (model.restore(blob), fork):
            got = run(other, frames[cut:])
            np.testing.assert_array_equal(got[0], want[0])
            assert got[1] == want[1]


def test_snapshot_keeps_pushed_samples_and_results(
    model: moshi_rs.StreamingModel, frames: Array
) -> None:
    session = model.new_session(seed=3)
    session.push(frames[:2].reshape(-1)[: FRAME + 100])
    other = model.restore(session.snapshot())
    for each in (session, other):
        each.push(frames[1][100:])
    for _ in range(2):
        left, right = session.pull(), other.pull()
        assert left is not None
        assert right is not None
        np.testing.assert_array_equal(left[0], right[0])
        assert left[1] == right[1]
    assert other.pull() is None


def test_snapshot_keeps_sampling_settings(model: moshi_rs.StreamingModel, frames: Array) -> None:
    session = model.new_session(seed=3, temperature=1.7, text_temperature=0.0, top_k=5)
    other = model.restore(session.snapshot())
    assert other.snapshot() == session.snapshot()
    np.testing.assert_array_equal(run(session, frames[:8])[0], run(other, frames[:8])[0])


def test_snapshot_works_across_loads(model: moshi_rs.StreamingModel, frames: Array) -> None:
    session = model.new_session(seed=3)
    run(session, frames[:5])
    again = moshi_rs.StreamingModel.load(DIALOGUE).restore(session.snapshot())
    np.testing.assert_array_equal(run(again, frames[5:9])[0], run(session, frames[5:9])[0])


def test_fork_leaves_the_original_alone(model: moshi_rs.StreamingModel, frames: Array) -> None:
    session = model.new_session(seed=3)
    run(session, frames[:5])
    before = session.snapshot()
    run(session.fork(), frames[30:40])
    assert session.snapshot() == before


def test_codec_stream_continues_exactly(mimi: moshi_rs.Mimi, codec_pcm: Array) -> None:
    frames = codec_pcm.reshape(-1, FRAME)
    stream = mimi.stream()
    for frame in frames[:15]:
        stream.decode_step(stream.encode_step(frame))
    others = [mimi.restore(stream.snapshot()), stream.fork()]
    for frame in frames[15:]:
        codes = stream.encode_step(frame)
        pcm = stream.decode_step(codes)
        for other in others:
            np.testing.assert_array_equal(other.encode_step(frame), codes)
            np.testing.assert_array_equal(other.decode_step(codes), pcm)
    stream.reset()
    assert stream.snapshot() == mimi.stream().snapshot()


def test_language_model_stream_continues_exactly() -> None:
    lm = moshi_rs.LanguageModel.load(GOLDEN / "hibiki")
    stream = lm.stream(conditions={"description": "very_good"}, guidance=3.0, seed=8, top_k=7)
    tokens = np.random.default_rng(1).integers(0, lm.cardinality, (30, 6))
    for row in tokens[:20]:
        stream.step(row)
    others = [lm.restore(stream.snapshot()), stream.fork()]
    for row in tokens[20:]:
        want = stream.step(row)
        for other in others:
            got = other.step(row)
            np.testing.assert_array_equal(got.logits, want.logits)
            np.testing.assert_array_equal(got.audio_tokens, want.audio_tokens)
            assert got.text_token == want.text_token
            assert other.seed == 8
    stream.reset()
    fresh = lm.stream(conditions={"description": "very_good"}, guidance=3.0, seed=8, top_k=7)
    np.testing.assert_array_equal(stream.step(tokens[0]).logits, fresh.step(tokens[0]).logits)


def test_conditioning_sequence_travels_in_the_snapshot() -> None:
    lm = moshi_rs.LanguageModel.load(GOLDEN / "tts")
    speaker = np.random.default_rng(1).normal(size=(9, 24)).astype(np.float32)
    conditions = {"control": "ok", "cfg": "2.0", "speaker_wavs": speaker}
    stream = lm.stream(conditions=conditions, seed=2)  # type: ignore[arg-type]
    for _ in range(3):
        stream.step([])
    other = lm.restore(stream.snapshot())
    np.testing.assert_array_equal(other.step([]).logits, stream.step([]).logits)


def replace(blob: bytes, at: int, new: bytes) -> bytes:
    return blob[:at] + new + blob[at + len(new) :]


FORGERIES: dict[str, tuple[Callable[[bytes], bytes], str]] = {
    "nothing": (lambda _: b"", "not a moshi-rs snapshot"),
    "no header": (lambda blob: blob[:40], "not a moshi-rs snapshot"),
    "magic": (lambda blob: seal(replace(blob, 0, b"X")), "magic"),
    "version": (lambda blob: seal(replace(blob, 8, b"\x09")), "format version 9"),
    "model": (lambda blob: seal(replace(blob, 12, bytes(32))), "another model"),
    "length": (lambda blob: replace(blob, 44, b"\xff" * 8), "declares"),
    "checksum": (lambda blob: blob[:-1] + bytes([blob[-1] ^ 1]), "checksum"),
    "bit": (lambda blob: replace(blob, 100, bytes([blob[100] ^ 1])), "checksum"),
    "truncated": (lambda blob: seal(blob[:-900]), "ends early"),
    "surplus": (lambda blob: seal(blob[:-SNAPSHOT_CHECKSUM] + bytes(64)), "too many"),
}


@pytest.mark.parametrize("name", FORGERIES)
def test_forged_snapshots_are_refused(
    model: moshi_rs.StreamingModel, mimi: moshi_rs.Mimi, frames: Array, name: str
) -> None:
    forge, words = FORGERIES[name]
    session, stream = model.new_session(seed=1), mimi.stream()
    run(session, frames[:12])
    stream.decode_step(stream.encode_step(frames[0]))
    lm_stream = (lm := moshi_rs.LanguageModel.load(GOLDEN / "moshi")).stream()
    for _ in range(12):
        lm_stream.step([1] * 8)
    with pytest.raises(moshi_rs.InputError, match=words):
        model.restore(forge(session.snapshot()))
    with pytest.raises(moshi_rs.InputError, match=words):
        mimi.restore(forge(stream.snapshot()))
    with pytest.raises(moshi_rs.InputError, match=words):
        lm.restore(forge(lm_stream.snapshot()))


def test_snapshot_of_other_options_is_refused(model: moshi_rs.StreamingModel) -> None:
    blob = model.new_session().snapshot()
    with pytest.raises(moshi_rs.InputError, match="other load options"):
        moshi_rs.StreamingModel.load(DIALOGUE, dtype="bf16").restore(blob)
    path = GOLDEN / "mimi" / "mimi.safetensors"
    encoder = moshi_rs.Mimi.load(path, parts="encoder").stream()
    with pytest.raises(moshi_rs.InputError, match="other parts"):
        moshi_rs.Mimi.load(path).restore(encoder.snapshot())
    with pytest.raises(TypeError):
        model.restore("text")  # type: ignore[arg-type]


def test_corrupt_payloads_with_a_good_checksum_never_crash(
    model: moshi_rs.StreamingModel, frames: Array
) -> None:
    session = model.new_session(seed=1)
    run(session, frames[:14])
    session.push(frames[14][:50])
    blob = session.snapshot()
    payload = len(blob) - SNAPSHOT_HEADER - SNAPSHOT_CHECKSUM
    random = np.random.default_rng(7)
    # The front holds the settings and counters; most of the rest are floats.
    places = [*range(150), *random.integers(0, payload, 150).tolist()]
    refused = 0
    for place in places:
        at = SNAPSHOT_HEADER + int(place)
        forged = seal(replace(blob, at, random.bytes(int(random.integers(1, 9)))[: len(blob) - at]))
        try:
            restored = model.restore(forged)
            restored.reset() if place % 2 else restored.push(frames[0])
        except moshi_rs.InternalError:
            raise
        except moshi_rs.MoshiError:
            refused += 1
    assert 20 < refused < len(places)
