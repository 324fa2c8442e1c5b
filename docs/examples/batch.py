"""Four conversations over one copy of the weights: in threads, then as one batch."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np

import moshi_rs

model = moshi_rs.StreamingModel.load()
heard = np.zeros((4, 12, model.frame_size), dtype=np.float32)  # [conversation, frame, sample]


def converse(conversation: int) -> str:
    """One conversation from beginning to end, in whatever thread this runs."""
    session = model.new_session(seed=conversation)
    return "".join(session.step(frame)[1] for frame in heard[conversation])


with ThreadPoolExecutor() as threads:  # steps release the GIL and run in parallel
    texts = list(threads.map(converse, range(4)))

sessions = [model.new_session(seed=conversation) for conversation in range(4)]
batched = [""] * 4
for frame in range(heard.shape[1]):
    outputs = moshi_rs.step_batch(sessions, heard[:, frame])
    for conversation, (_pcm, text) in enumerate(outputs):
        batched[conversation] += text

assert batched == texts
