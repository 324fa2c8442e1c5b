"""A LiveKit agent whose voice is a server of this project.

    python livekit_duplex.py dev

Needs ``pip install livekit-agents livekit-plugins-openai`` and a LiveKit server, which
``LIVEKIT_URL``, ``LIVEKIT_API_KEY`` and ``LIVEKIT_API_SECRET`` name. ``MOSHI_RS_URL`` is ours, as
http://127.0.0.1:8998/v1.
"""

from __future__ import annotations

import os

from livekit.agents import Agent, AgentSession, JobContext, WorkerOptions, cli
from livekit.plugins.openai.realtime import GPTLiveModel


def voice() -> GPTLiveModel:
    """Full duplex: the model decides itself when to speak."""
    return GPTLiveModel(
        model="moshi",
        delegation="client",
        base_url=os.environ.get("MOSHI_RS_URL", "http://127.0.0.1:8998/v1"),
        api_key=os.environ.get("MOSHI_RS_API_KEY", "none"),
    )


async def entrypoint(context: JobContext) -> None:
    """Joins a room and talks with who is there."""
    await context.connect()
    session = AgentSession(llm=voice())
    await session.start(agent=Agent(instructions=""), room=context.room)


if __name__ == "__main__":
    cli.run_app(WorkerOptions(entrypoint_fnc=entrypoint))
