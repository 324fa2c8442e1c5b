"""Keeps a server busy for a long time with callers of every kind, and looks whether it stays well.

Callers join and leave, lose their connection and come back with their token, stop reading, and send
garbage. Meanwhile the server's memory, its slots, its health and the time of its steps are watched.
Run it by ``make soak``; MOSHI_RS is the program, MOSHI_RS_MODEL a model in place of the one in the
box.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import random
import re
import sys
import time
from collections import Counter
from pathlib import Path

import aiohttp

sys.path.insert(0, str(Path(__file__).parent / "clients"))

from support import started

FRAME_S = 0.08
FRAME_BYTES = 2 * 1920
AUDIO, METADATA = 1, 4
# Longer than the server waits for a peer that does not take what it is sent.
DEAF_S = 12
# The model in the box remembers 20 s.
LONG_S = 80
GRACE_S = 5
WARM_UP = 0.2
MAX_SLOPE_KB = 1.0
MAX_SLOWER = 1.2


class Soak:
    """One run against one server."""

    def __init__(self, base: str, pid: int, seconds: float, seed: int) -> None:
        self.base, self.pid = base, pid
        self.end = time.monotonic() + seconds
        self.random = random.Random(seed)
        self.events: Counter[str] = Counter()
        self.samples: list[dict] = []
        self.problems: list[str] = []
        tone = bytes(self.random.randrange(256) if i % 2 == 0 else 0 for i in range(FRAME_BYTES))
        self.message = bytes([AUDIO]) + tone

    def over(self) -> bool:
        return time.monotonic() >= self.end

    async def caller(self, http: aiohttp.ClientSession) -> None:
        """Calls again and again, each time in another way."""
        kinds = [self.polite, self.lost, self.deaf, self.broken, self.impatient]
        while not self.over():
            kind = self.random.choices(kinds, weights=[6, 4, 1, 2, 2])[0]
            self.events[kind.__name__] += 1
            try:
                await kind(http)
            except (aiohttp.ClientError, ConnectionError, asyncio.TimeoutError) as error:
                self.events[f"{kind.__name__}: {type(error).__name__}"] += 1
            await asyncio.sleep(self.random.uniform(0, 0.5))

    async def connect(self, http: aiohttp.ClientSession, resume: str | None = None):
        query = {"audio": "pcm16", "seed": str(self.random.randrange(1 << 30))}
        if resume:
            query["resume"] = resume
        return await http.ws_connect(f"{self.base}/api/chat", params=query, autoping=True)

    async def talk(self, socket, seconds: float) -> str | None:
        """Talks at the pace of speech and gives the token; None when the server closed."""
        token, closed = None, False
        begin = time.monotonic()

        async def listen():
            nonlocal token, closed
            async for message in socket:
                if message.type == aiohttp.WSMsgType.BINARY and message.data[0] == METADATA:
                    token = json.loads(message.data[1:])["resume_token"]
            closed = True
            self.events[f"closed with {socket.close_code}"] += 1

        listening = asyncio.create_task(listen())
        try:
            for number in range(int(seconds / FRAME_S)):
                await asyncio.sleep(max(0.0, begin + number * FRAME_S - time.monotonic()))
                if closed or self.over():
                    break
                await socket.send_bytes(self.message)
        finally:
            listening.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await listening
        return None if closed else token

    async def polite(self, http) -> None:
        """Says goodbye after a while, which may be several contexts of the model in the box."""
        socket = await self.connect(http)
        await self.talk(socket, self.random.uniform(1, LONG_S))
        await socket.close()

    async def lost(self, http) -> None:
        """Loses its connection, and comes back or not."""
        socket = await self.connect(http)
        token = await self.talk(socket, self.random.uniform(1, 10))
        self.cut(socket)
        if token and self.random.random() < 0.7:
            await asyncio.sleep(self.random.uniform(0, GRACE_S / 2))
            socket = await self.connect(http, token)
            if await self.talk(socket, self.random.uniform(1, 10)):
                self.events["resumed"] += 1
            await socket.close()

    async def deaf(self, http) -> None:
        """Sends and does not read."""
        socket = await self.connect(http)
        socket._response.connection.transport.pause_reading()

        async def shout():
            while not socket.closed and not self.over():
                await socket.send_bytes(self.message)
                await asyncio.sleep(FRAME_S / 8)

        with contextlib.suppress(asyncio.TimeoutError):
            await asyncio.wait_for(shout(), DEAF_S)
        self.cut(socket)

    async def broken(self, http) -> None:
        """Sends what is no message, then something that nearly is."""
        socket = await self.connect(http)
        for _ in range(self.random.randrange(1, 80)):
            length = self.random.randrange(1, 400)
            await socket.send_bytes(self.random.randbytes(length))
        await socket.send_bytes(self.message[: self.random.randrange(1, FRAME_BYTES)])
        await socket.send_str("a text message")
        await self.talk(socket, 1)
        await socket.close()

    async def impatient(self, http) -> None:
        """Leaves at once."""
        socket = await self.connect(http)
        if self.random.random() < 0.5:
            await socket.send_bytes(self.message)
        self.cut(socket)

    @staticmethod
    def cut(socket) -> None:
        connection = socket._response.connection
        if connection is not None and connection.transport is not None:
            connection.transport.abort()
            connection.close()

    async def watch(self, http, every_s: float) -> None:
        while not self.over():
            await self.look(http)
            await asyncio.sleep(every_s)

    async def look(self, http) -> dict:
        """One sample of everything that is watched."""
        async with http.get(f"{self.base}/readyz") as answer:
            if answer.status != 200:
                self.problems.append(f"readyz: {answer.status} {await answer.text()}")
        async with http.get(f"{self.base}/metrics") as answer:
            text = await answer.text()
        status = Path(f"/proc/{self.pid}/status").read_text()
        buckets = re.findall(r'moshi_step_seconds_bucket\{le="([^"]+)"\} (\d+)', text)
        sample = {
            "rss_kb": int(re.search(r"VmRSS:\s+(\d+)", status)[1]),
            "steps": float(re.search(r"^moshi_step_streams_sum (\S+)", text, re.M)[1]),
            "used": int(re.search(r'^moshi_slots\{state="used"\} (\d+)', text, re.M)[1]),
            "buckets": [(float(le), int(count)) for le, count in buckets],
        }
        self.samples.append(sample)
        return sample

    def slope_kb(self) -> float:
        """Growth of the resident memory in KB per 1,000 frames, after a warm-up."""
        kept = self.samples[int(len(self.samples) * WARM_UP) :]
        xs = [sample["steps"] / 1000 for sample in kept]
        ys = [sample["rss_kb"] for sample in kept]
        x, y = sum(xs) / len(xs), sum(ys) / len(ys)
        spread = sum((a - x) ** 2 for a in xs)
        return (
            sum((a - x) * (b - y) for a, b in zip(xs, ys, strict=True)) / spread if spread else 0.0
        )

    def p99_ms(self, first: dict, last: dict) -> float:
        """Of the steps between two samples, as a line within its bucket."""
        counts = [
            (le, after - before)
            for (le, before), (_, after) in zip(first["buckets"], last["buckets"], strict=True)
        ]
        rank = 0.99 * counts[-1][1]
        low, below = 0.0, 0
        for le, count in counts:
            if count >= rank:
                high = le if le != float("inf") else 2 * low
                return 1e3 * (low + (high - low) * (rank - below) / max(count - below, 1))
            low, below = le, count
        return 1e3 * low


async def run(arguments: argparse.Namespace, pid: int, base: str) -> int:
    soak = Soak(base, pid, arguments.seconds, arguments.seed)
    timeout = aiohttp.ClientTimeout(total=None, sock_connect=10)
    connector = aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(timeout=timeout, connector=connector) as http:
        callers = [soak.caller(http) for _ in range(arguments.callers)]
        await asyncio.gather(soak.watch(http, arguments.every), *callers)
        busy = len(soak.samples) - 1
        deadline = time.monotonic() + GRACE_S + DEAF_S
        while (last := await soak.look(http))["used"] and time.monotonic() < deadline:
            await asyncio.sleep(0.5)
    if last["used"]:
        soak.problems.append(f"{last['used']} slots are lost")
    slope = soak.slope_kb()
    tenth = max(1, busy // 10)
    first = soak.p99_ms(soak.samples[0], soak.samples[tenth])
    late = soak.p99_ms(soak.samples[busy - tenth], soak.samples[busy])
    report = {
        "seconds": arguments.seconds,
        "frames": int(last["steps"]),
        "rss_kb": [soak.samples[0]["rss_kb"], last["rss_kb"]],
        "slope_kb_per_1000_frames": round(slope, 3),
        "p99_step_ms": {"first_tenth": round(first, 2), "last_tenth": round(late, 2)},
        "events": dict(sorted(soak.events.items())),
    }
    # A short run says nothing about slopes: what is allocated once is still being allocated.
    if last["steps"] >= arguments.judge_from:
        if slope > MAX_SLOPE_KB:
            soak.problems.append(f"memory grows by {slope:.2f} KB per 1,000 frames")
        if late > MAX_SLOWER * first:
            soak.problems.append(f"steps became slower: p99 {first:.1f} ms, then {late:.1f} ms")
    if "resumed" not in soak.events and soak.events["lost"] > 10:
        soak.problems.append("no lost conversation came back")
    report["problems"] = soak.problems
    print(json.dumps(report, indent=1))
    return 1 if soak.problems else 0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=2400)
    parser.add_argument("--callers", type=int, default=6)
    parser.add_argument("--sessions", type=int, default=4)
    parser.add_argument("--every", type=float, default=5, help="seconds between two looks")
    parser.add_argument("--judge-from", type=float, default=20_000, help="frames, for slopes")
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    options = ["--max-sessions", str(arguments.sessions), "--queue", "1"]
    options += ["--resume-grace", str(GRACE_S)]
    with started(*options) as (process, host, port):
        return asyncio.run(run(arguments, process.pid, f"http://{host}:{port}"))


if __name__ == "__main__":
    sys.exit(main())
