"""A process that is forked after a model was loaded has none of its threads."""

from __future__ import annotations

import os
import signal
import sys
import time

import numpy as np
import pytest

import moshi_rs

PATIENCE_S = 60.0


@pytest.mark.skipif(sys.platform == "win32", reason="there is no fork")
@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_a_forked_process_steps_and_drops_the_model() -> None:
    model = moshi_rs.StreamingModel.load(threads=2)
    session = model.new_session(seed=1)
    frame = np.zeros(model.frame_size, np.float32)
    session.step(frame)
    twin = model.restore(session.snapshot())
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            pcm, _ = session.step(frame)
            del session, twin, model
            code = 0 if np.isfinite(pcm).all() else 2
        finally:
            os._exit(code)
    end = time.monotonic() + PATIENCE_S
    while time.monotonic() < end:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            assert os.waitstatus_to_exitcode(status) == 0
            break
        time.sleep(0.01)
    else:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        pytest.fail("the forked process hangs")
    # The one that forked goes on as ever.
    assert np.array_equal(session.step(frame)[0], twin.step(frame)[0])
