"""The page in a real Chromium, with a microphone that plays the recorded question."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import os
import shutil
import subprocess
import time
import urllib.request
from pathlib import Path

import numpy as np
import pytest
import websockets

from support import QUESTION, Relay, one_is_in_time, server

RATE_HZ = 24_000
SECONDS = 30
# Time without a word after which the model has answered.
QUIET_S = 3
TOLERANCE_S = 0.5
FLAGS = [
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--autoplay-policy=no-user-gesture-required",
    "--use-fake-device-for-media-stream",
    f"--use-file-for-fake-audio-capture={QUESTION}%noloop",
    "--remote-debugging-port=0",
    "--window-size=420,900",
]

# Keeps what the page gives to the loudspeaker, and counts what it sends.
LISTEN = """
window.played = [];
window.sentBytes = 0;
const send = WebSocket.prototype.send;
WebSocket.prototype.send = function (data) {
  window.sentBytes += data.byteLength - 1;
  return send.call(this, data);
};
const connect = AudioNode.prototype.connect;
AudioNode.prototype.connect = function (node, ...rest) {
  if (node instanceof AudioDestinationNode) {
    const tap = this.context.createScriptProcessor(2048, 1, 1);
    tap.onaudioprocess = (event) => {
      const block = event.inputBuffer.getChannelData(0);
      window.played.push(Array.from(block, (sample) => Math.round(32768 * sample)));
    };
    connect.call(this, tap);
    connect.call(tap, node);
  }
  return connect.call(this, node, ...rest);
};
"""


class Page:
    """As much of the Chrome DevTools Protocol as the test needs."""

    def __init__(self, socket):
        self.socket, self.number, self.requests, self.problems = socket, 0, [], []

    async def call(self, method, **parameters):
        self.number += 1
        number = self.number
        message = {"id": number, "method": method, "params": parameters}
        await self.socket.send(json.dumps(message))
        while True:
            answer = json.loads(await self.socket.recv())
            if answer.get("id") == number:
                assert "error" not in answer, answer
                return answer["result"]
            if answer.get("method") == "Network.requestWillBeSent":
                self.requests.append(answer["params"]["request"]["url"])
            if answer.get("method") == "Runtime.exceptionThrown":
                self.problems.append(answer["params"]["exceptionDetails"])

    async def evaluate(self, expression):
        options = {"expression": expression, "awaitPromise": True, "returnByValue": True}
        return (await self.call("Runtime.evaluate", **options))["result"].get("value")

    async def text(self, element):
        return await self.evaluate(f"document.getElementById({element!r}).textContent")

    async def press_start(self):
        """The button that stops, too."""
        await self.evaluate("document.getElementById('start').click()")

    async def until(self, condition):
        for _ in range(600):
            if await self.evaluate(condition):
                return
            await asyncio.sleep(0.1)
        pytest.fail(f"not in a minute: {condition}; the status is {await self.text('status')!r}")

    async def picture(self, name):
        """Into the folder PAGE_PICTURES, for people to look at."""
        if folder := os.environ.get("PAGE_PICTURES"):
            taken = await self.call("Page.captureScreenshot", format="png")
            (Path(folder) / name).write_bytes(base64.b64decode(taken["data"]))


@contextlib.contextmanager
def chromium(folder):
    """A browser of its own; gives the port of its DevTools."""
    program = os.environ.get("CHROMIUM") or shutil.which("chromium")
    if program is None:
        pytest.fail("no chromium: install the system's package of that name")
    flags = [*FLAGS, f"--user-data-dir={folder / 'profile'}"]
    browser = subprocess.Popen([program, *flags, "about:blank"], stderr=subprocess.PIPE, text=True)
    try:
        for line in browser.stderr:
            if "DevTools listening on" in line:
                yield int(line.split(":")[-1].split("/")[0])
                break
    finally:
        browser.kill()
        browser.wait()


@contextlib.asynccontextmanager
async def visited(folder, *, allow=True):
    """The page in a browser of its own, and the relay behind it; complains of both at the end."""
    with (
        server("--seed", "1") as (host, port),
        Relay(host, port) as relay,
        chromium(folder) as devtools,
    ):
        with urllib.request.urlopen(f"http://127.0.0.1:{devtools}/json/list") as answer:
            tab = next(tab for tab in json.load(answer) if tab["type"] == "page")
        async with websockets.connect(tab["webSocketDebuggerUrl"], max_size=None) as connection:
            page = Page(connection)
            for domain in "Page", "Network", "Runtime":
                await page.call(f"{domain}.enable")
            # Without the flag that grants everything, the page has to cope with a refusal.
            await page.call(
                "Browser.setPermission",
                permission={"name": "microphone"},
                setting="granted" if allow else "denied",
            )
            await page.call("Page.addScriptToEvaluateOnNewDocument", source=LISTEN)
            address = f"http://{relay.host}:{relay.port}/"
            await page.call("Page.navigate", url=address)
            await page.until("document.readyState === 'complete'")
            yield page, relay
        assert not page.problems
        others = [url for url in page.requests if not url.startswith((address, "data:", "blob:"))]
        assert not others, "a request to another host"


STATUS = "document.getElementById('status').textContent.includes('{}')"
LISTENS = STATUS.format("The model listens")
FACTS = ("status", "problem", "said", "fact-latency", "fact-lag", "fact-dropped", "fact-late")


async def talk(page):
    """Asks the question, hears the answer to its end, and stops; gives what was to be seen."""
    await page.press_start()
    await page.until(LISTENS)
    begin = time.monotonic()
    seen, spoke = [], begin
    while time.monotonic() - begin < SECONDS:
        facts = {name: await page.text(name) for name in FACTS}
        facts["seconds"] = time.monotonic() - begin
        if seen and facts["said"] != seen[-1]["said"]:
            spoke = time.monotonic()
        seen.append(facts)
        if facts["said"] and time.monotonic() - spoke > QUIET_S:
            break
        await asyncio.sleep(0.2)
    await page.picture("page.png")
    await page.press_start()
    seconds = await page.evaluate("window.sentBytes") / 2 / RATE_HZ
    await asyncio.sleep(0.5)
    after = {name: await page.text(name) for name in FACTS}
    played = np.concatenate([np.int16(part) for part in await page.evaluate("window.played")])
    return seen, after, seconds, played


def lag(seen) -> str:
    """What came late after the first second, in words; empty for nothing."""
    first = next(facts for facts in seen if facts["seconds"] >= 1)
    shown = [facts for facts in seen if facts["seconds"] >= 1]
    found = []
    for name in "fact-dropped", "fact-late":
        if shown[-1][name] != first[name]:
            found.append(f"{name} from {first[name]} to {shown[-1][name]}")
    worst = max(int(facts["fact-lag"].removesuffix(" ms")) for facts in shown)
    if worst:
        found.append(f"fact-lag {worst} ms")
    return ", ".join(found)


def loudness(samples) -> float:
    return float(np.sqrt(np.mean((samples / 32768) ** 2)))


def contains(whole, part) -> bool:
    """True where one recording has the other in it, sample by sample but for rounding."""
    size = 1 << (len(whole) + len(part)).bit_length()
    spectra = [np.fft.rfft(samples.astype(float), size) for samples in (whole, part)]
    place = int(np.fft.irfft(spectra[0] * spectra[1].conj(), size)[: len(whole)].argmax())
    found = whole[place : place + len(part)].astype(int)
    return len(found) == len(part) and bool(np.abs(found - part).max() <= 1)


def test_a_browser_talks_with_the_model(tmp_path):
    async def visit():
        async with visited(tmp_path) as (page, relay):
            return relay, *await talk(page)

    def converse():
        relay, seen, after, seconds, played = asyncio.run(visit())
        print(json.dumps(seen[-1], indent=1))
        assert seen[-1]["problem"] == after["problem"] == ""
        assert after["status"] == "Not connected."
        assert seen[-1]["fact-latency"].endswith("ms")

        [chat] = relay.chats()
        messages = chat.messages()
        text = b"".join(message[1:] for message in messages if message[0] == 2).decode()
        assert text.strip(), "the model says something"
        assert after["said"] == text.strip()

        sent = b"".join(message[1:] for message in messages if message[0] == 1)
        sent = np.frombuffer(sent, np.int16)
        assert abs(len(sent) / RATE_HZ - seconds) <= TOLERANCE_S
        [sounding] = np.nonzero(played)
        played = played[sounding[0] : sounding[-1] + 1]
        assert abs(len(played) / RATE_HZ - seconds) <= TOLERANCE_S
        assert loudness(played) > 1e-3, "silence"
        half = RATE_HZ // 2
        parts = played[: len(played) // half * half].reshape(-1, half)
        spoken = [part for part in parts if loudness(part) > 1e-3]
        # Any: a busy browser leaves blocks out of what the test is given.
        assert any(contains(sent, part) for part in spoken), "not what the server sends"
        return lag(seen)

    one_is_in_time(converse)


def test_a_browser_without_a_microphone_says_so(tmp_path):
    async def converse():
        async with visited(tmp_path, allow=False) as (page, _):
            await page.press_start()
            await page.until("!document.getElementById('problem').hidden")
            await page.picture("page-refused.png")
            return await page.text("problem")

    assert "not allowed" in asyncio.run(converse())


def test_the_page_notices_a_network_that_is_gone_and_goes_on(tmp_path):
    async def converse():
        async with visited(tmp_path) as (page, relay):
            await page.press_start()
            await page.until(LISTENS)
            await page.until("document.getElementById('fact-latency').textContent.endsWith('ms')")
            relay.lose()
            await page.until(STATUS.format("trying again"))
            await page.until(LISTENS)
            problem = await page.text("problem")
            await page.press_start()
            return relay, problem

    relay, problem = asyncio.run(converse())
    assert problem == ""
    first, second = (chat.request for chat in relay.chats())
    assert "resume=" not in first
    assert "resume=" in second
