"""Results depend on seed and input, not on chunking, threads or batch mates."""

from __future__ import annotations

import numpy as np
import pytest

import moshi_rs
from support import FRAME, GREEDY, Array, run


def test_same_seed_same_output(model: moshi_rs.StreamingModel, frames: Array) -> None:
    first, again = (run(model.new_session(seed=7), frames) for _ in range(2))
    np.testing.assert_array_equal(first[0], again[0])
    assert first[1] == again[1]


def test_a_drawn_seed_repeats_its_session(model: moshi_rs.StreamingModel, frames: Array) -> None:
    session = model.new_session()
    again = model.new_session(seed=session.seed)
    np.testing.assert_array_equal(run(session, frames[:20])[0], run(again, frames[:20])[0])


def test_different_seeds_differ(model: moshi_rs.StreamingModel, frames: Array) -> None:
    texts = {"".join(run(model.new_session(seed=seed), frames[:20])[1]) for seed in range(6)}
    assert len(texts) == 6


def test_greedy_ignores_the_seed(model: moshi_rs.StreamingModel, frames: Array) -> None:
    left, right = (run(model.new_session(seed=s, **GREEDY), frames[:20]) for s in (1, 2))
    np.testing.assert_array_equal(left[0], right[0])
    top_one = run(model.new_session(seed=3, top_k=1, top_k_text=1), frames[:20])
    np.testing.assert_array_equal(left[0], top_one[0])


@pytest.mark.parametrize("chunk", [1, 17, 640, 1919, 1920, 1921, 5000, 12 * FRAME])
def test_push_in_any_chunks_equals_step(
    model: moshi_rs.StreamingModel, frames: Array, chunk: int
) -> None:
    count = 2 if chunk == 1 else 12
    pcm = frames[:count].reshape(-1)
    session = model.new_session(seed=7)
    stepped = sum(session.push(pcm[i : i + chunk]) for i in range(0, len(pcm), chunk))
    assert stepped == count
    want = run(model.new_session(seed=7), frames[:count])
    for pcm_out, text in zip(*want, strict=True):
        result = session.pull()
        assert result is not None
        np.testing.assert_array_equal(result[0], pcm_out)
        assert result[1] == text
    assert session.pull() is None


def test_batch_equals_alone_whatever_the_mates(
    model: moshi_rs.StreamingModel, frames: Array
) -> None:
    """Sessions come and go, out of step with each other; each stays bit for bit the same."""
    members = [range(25), range(3, 18), range(10, 25), range(0, 25, 2)]
    sessions = [model.new_session(seed=100 + i) for i in range(len(members))]
    got: list[list[tuple[Array, str]]] = [[] for _ in members]
    for t in range(25):
        active = [i for i, steps in enumerate(members) if t in steps]
        outputs = moshi_rs.step_batch(
            [sessions[i] for i in active], [frames[(t + 9 * i) % 60] for i in active]
        )
        for i, output in zip(active, outputs, strict=True):
            got[i].append(output)
    for i, steps in enumerate(members):
        alone = model.new_session(seed=100 + i)
        assert len(got[i]) == len(steps)
        for t, (pcm, text) in zip(steps, got[i], strict=True):
            want_pcm, want_text = alone.step(frames[(t + 9 * i) % 60])
            np.testing.assert_array_equal(pcm, want_pcm)
            assert text == want_text


def test_codec_batch_equals_alone(mimi: moshi_rs.Mimi, codec_pcm: Array) -> None:
    frames = codec_pcm.reshape(-1, FRAME)
    together, alone = ([mimi.stream() for _ in range(3)] for _ in range(2))
    for t in range(14):
        active = [i for i in range(3) if t % (i + 1) == 0]
        pcm = frames[[(t + 5 * i) % 24 for i in active]]
        codes = mimi.encode_step_batch([together[i] for i in active], pcm)
        out = mimi.decode_step_batch([together[i] for i in active], codes)
        for row, i in enumerate(active):
            np.testing.assert_array_equal(alone[i].encode_step(pcm[row]), codes[row])
            np.testing.assert_array_equal(alone[i].decode_step(codes[row]), out[row])


def test_language_model_draws_by_seed(lm: moshi_rs.LanguageModel) -> None:
    def draws(seed: int) -> list[int]:
        stream = lm.stream(seed=seed, text_temperature=2.0, top_k_text=0)
        return [stream.step([t % 40] * 8).text_token for t in range(20)]

    assert draws(1) == draws(1)
    assert draws(1) != draws(2)
