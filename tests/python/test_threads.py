"""Threads: parallel sessions, a released GIL, and calls that collide."""

from __future__ import annotations

import contextlib
import sys
import sysconfig
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import numpy as np
import pytest

import moshi_rs
from support import FRAME, Array, run

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

GIL: bool = getattr(sys, "_is_gil_enabled", lambda: True)()


def test_parallel_sessions_equal_sequential_ones(
    model: moshi_rs.StreamingModel, frames: Array
) -> None:
    want = [run(model.new_session(seed=seed), frames[:30]) for seed in range(4)]
    with ThreadPoolExecutor(4) as pool:
        jobs = [pool.submit(run, model.new_session(seed=s), frames[:30]) for s in range(4)]
        got = [job.result() for job in jobs]
    for left, right in zip(got, want, strict=True):
        np.testing.assert_array_equal(left[0], right[0])
        assert left[1] == right[1]


def test_import_leaves_the_gil_off() -> None:
    free_threaded = bool(sysconfig.get_config_var("Py_GIL_DISABLED"))
    assert free_threaded != GIL


def test_gil_is_released_during_a_call(mimi: moshi_rs.Mimi) -> None:
    pcm = np.zeros(300 * FRAME, np.float32)
    start, counted = threading.Event(), 0

    def count() -> None:
        nonlocal counted
        start.wait()
        while counted < 1000:
            counted += 1

    thread = threading.Thread(target=count)
    interval = sys.getswitchinterval()
    # Nothing but a released GIL lets the other thread in.
    sys.setswitchinterval(100)
    try:
        thread.start()
        start.set()
        before = counted
        mimi.encode(pcm)
        after = counted
    finally:
        sys.setswitchinterval(interval)
        thread.join()
    assert before == 0 or not GIL
    assert after == 1000


@contextlib.contextmanager
def running(call: Callable[[], object]) -> Iterator[None]:
    """Runs a long call in another thread, which is in native code when the body starts."""
    started = threading.Event()

    def work() -> None:
        started.set()
        call()

    thread = threading.Thread(target=work)
    interval = sys.getswitchinterval()
    # The other thread keeps the GIL until its native code releases it.
    sys.setswitchinterval(100)
    try:
        thread.start()
        started.wait()
        time.sleep(0.05)
        yield
    finally:
        sys.setswitchinterval(interval)
        thread.join()


def test_second_call_into_a_session_is_an_error(
    model: moshi_rs.StreamingModel, frames: Array
) -> None:
    session = model.new_session(seed=1)
    calls: list[Callable[[], object]] = [
        session.pull,
        session.reset,
        session.snapshot,
        session.fork,
        lambda: session.push(frames[0]),
        lambda: session.step(frames[0]),
        lambda: moshi_rs.step_batch([session], frames[:1]),
    ]
    with running(lambda: session.push(np.resize(frames, 120 * FRAME))):
        for call in calls:
            with pytest.raises(moshi_rs.SessionError, match="busy"):
                call()
        assert repr(session) == "Session(seed=1)"
        other, _ = model.new_session(seed=2).step(frames[0])
        assert other.shape == (FRAME,)
    pushed = [session.pull() for _ in range(120)]
    pcm, _ = run(model.new_session(seed=1), np.resize(frames, (120, FRAME)))
    for output, want in zip(pushed, pcm, strict=True):
        assert output is not None
        np.testing.assert_array_equal(output[0], want)


def test_second_call_into_a_stream_is_an_error(mimi: moshi_rs.Mimi) -> None:
    streams = [mimi.stream() for _ in range(2_000)]
    pcm = np.zeros((2_000, FRAME), np.float32)
    stream = streams[-1]
    with running(lambda: mimi.encode_step_batch(streams, pcm)):
        for call in (stream.reset, stream.fork, stream.snapshot):
            with pytest.raises(moshi_rs.SessionError, match="busy"):
                call()
    twin = mimi.stream()
    twin.encode_step(pcm[0])
    assert stream.snapshot() == twin.snapshot()
