"""Conversations in an event loop that never waits for a step."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import numpy as np

import moshi_rs


async def microphone(frame_size: int) -> AsyncIterator[np.ndarray]:
    """Where frames come from: here silence, in a server a connection."""
    for _ in range(8):
        await asyncio.sleep(0)
        yield np.zeros(frame_size, dtype=np.float32)


async def converse(model: moshi_rs.StreamingModel, seed: int) -> str:
    """One conversation. Its steps run in a thread, one after another."""
    session = model.new_session(seed=seed)
    said = ""
    async for frame in microphone(model.frame_size):
        _pcm, text = await asyncio.to_thread(session.step, frame)
        said += text
    return said


async def main() -> list[str]:
    """Loads off the loop as well: reading weights takes seconds."""
    model = await asyncio.to_thread(moshi_rs.StreamingModel.load)
    return await asyncio.gather(*(converse(model, seed) for seed in range(3)))


texts = asyncio.run(main())
assert len(texts) == 3
