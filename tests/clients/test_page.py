"""The page in a real Chromium, with a microphone that plays the recorded question."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import shutil
import socket
import subprocess
import threading
import urllib.request
from pathlib import Path

import pytest
import websockets

from support import QUESTION, one_is_in_time, server

SECONDS = 20
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
    f"--use-file-for-fake-audio-capture={QUESTION}",
    "--remote-debugging-port=0",
    "--window-size=420,900",
]


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
async def opened(devtools, address, allow):
    """The page at an address."""
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
        await page.call("Page.navigate", url=address)
        while await page.evaluate("document.readyState") != "complete":
            await asyncio.sleep(0.1)
        yield page


async def talk(devtools, address, folder, allow):
    async with opened(devtools, address, allow) as page:
        await page.evaluate("document.getElementById('start').click()")
        dropped_at_first = None
        for _ in range(SECONDS * 5):
            await asyncio.sleep(0.2)
            if dropped_at_first is None and (await page.text("fact-latency")).endswith("ms"):
                await asyncio.sleep(1)
                dropped_at_first = await page.text("fact-dropped")
            if not allow and await page.evaluate("!document.getElementById('problem').hidden"):
                break
        facts = {
            name: await page.text(name)
            for name in ("status", "problem", "said", "fact-latency", "fact-lag", "fact-dropped")
        }
        facts["dropped-at-first"] = dropped_at_first
        picture = await page.call("Page.captureScreenshot", format="png")
        (folder / "page.png.base64").write_text(picture["data"])
        if allow:
            await page.evaluate("document.getElementById('start').click()")
            await asyncio.sleep(0.5)
            facts["after"] = await page.text("status")
        return page, facts


def test_a_browser_talks_with_the_model(tmp_path):
    def converse():
        facts = visit(tmp_path, allow=True)
        assert facts["problem"] == ""
        assert facts["said"].strip(), "no text"
        assert facts["fact-latency"].endswith("ms")
        assert facts["after"] == "Not connected."
        dropped = int(facts["fact-dropped"]) - int(facts["dropped-at-first"])
        return f"{dropped} frames dropped" if dropped else ""

    one_is_in_time(converse)


def test_a_browser_without_a_microphone_says_so(tmp_path):
    assert "not allowed" in visit(tmp_path, allow=False)["problem"]


def visit(tmp_path, allow):
    with server("--seed", "1") as (host, port), chromium(tmp_path) as devtools:
        address = f"http://{host}:{port}/"
        page, facts = asyncio.run(talk(devtools, address, tmp_path, allow))
    print(json.dumps(facts, indent=1))
    pictures = os.environ.get("PAGE_PICTURES")
    if pictures:
        import base64

        name = "page.png" if allow else "page-refused.png"
        data = base64.b64decode((tmp_path / "page.png.base64").read_text())
        (Path(pictures) / name).write_bytes(data)
    assert not page.problems
    others = [url for url in page.requests if not url.startswith((address, "data:", "blob:"))]
    assert not others, "a request to another host"
    return facts


class Network:
    """Carries connections to a server, and loses those there are without closing them."""

    def __init__(self, host, port):
        self.upstream = (host, port)
        self.requests, self.connections = [], []
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.port = self.listener.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def lose(self):
        for connection in self.connections:
            connection["lost"] = True

    def _accept(self):
        with contextlib.suppress(OSError):
            while True:
                client, _ = self.listener.accept()
                server = socket.create_connection(self.upstream)
                connection = {"lost": False}
                self.connections.append(connection)
                for ends in (client, server), (server, client):
                    copy = threading.Thread(
                        target=self._copy, args=(*ends, connection, ends[0] is client), daemon=True
                    )
                    copy.start()

    def _copy(self, source, sink, connection, asks):
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                if asks and data.startswith(b"GET "):
                    self.requests.append(data.split(b"\r\n")[0].decode())
                if not connection["lost"]:
                    sink.sendall(data)
            if not connection["lost"]:
                sink.shutdown(socket.SHUT_WR)


async def lose_the_network(devtools, network):
    async def status(part):
        for _ in range(600):
            shown = await page.text("status")
            if part in shown:
                return
            await asyncio.sleep(0.1)
        pytest.fail(f"the status is {shown!r}, not {part!r}")

    async with opened(devtools, f"http://127.0.0.1:{network.port}/", allow=True) as page:
        await page.evaluate("document.getElementById('start').click()")
        await status("The model listens")
        while not (await page.text("fact-latency")).endswith("ms"):
            await asyncio.sleep(0.1)
        network.lose()
        await status("trying again")
        await status("The model listens")
        problem = await page.text("problem")
        await page.evaluate("document.getElementById('start').click()")
        return problem


def test_the_page_notices_a_network_that_is_gone_and_goes_on(tmp_path):
    with server("--seed", "1") as (host, port), chromium(tmp_path) as devtools:
        network = Network(host, port)
        problem = asyncio.run(lose_the_network(devtools, network))
    assert problem == ""
    chats = [request for request in network.requests if "/api/chat" in request]
    assert len(chats) == 2
    assert "resume=" not in chats[0]
    assert "resume=" in chats[1]
