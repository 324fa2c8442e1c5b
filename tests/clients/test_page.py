"""The page in a real Chromium, with a microphone that plays the recorded question."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import subprocess
import urllib.request
from pathlib import Path

import pytest
import websockets

from support import QUESTION, server

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


async def talk(port, address, folder, allow):
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/json/list") as answer:
        tab = next(tab for tab in json.load(answer) if tab["type"] == "page")
    url = tab["webSocketDebuggerUrl"]
    async with websockets.connect(url, max_size=None) as socket:
        page = Page(socket)
        for domain in "Page", "Network", "Runtime":
            await page.call(f"{domain}.enable")
        await page.call(
            "Browser.setPermission",
            permission={"name": "microphone"},
            setting="granted" if allow else "denied",
        )
        await page.call("Page.navigate", url=address)
        while await page.evaluate("document.readyState") != "complete":
            await asyncio.sleep(0.1)
        await page.evaluate("document.getElementById('start').click()")
        for _ in range(SECONDS * 5):
            await asyncio.sleep(0.2)
            if not allow and await page.evaluate("!document.getElementById('problem').hidden"):
                break
        facts = {
            name: await page.text(name)
            for name in ("status", "problem", "said", "fact-latency", "fact-lag", "fact-dropped")
        }
        picture = await page.call("Page.captureScreenshot", format="png")
        (folder / "page.png.base64").write_text(picture["data"])
        if allow:
            await page.evaluate("document.getElementById('start').click()")
            await asyncio.sleep(0.5)
            facts["after"] = await page.text("status")
        return page, facts


@pytest.mark.parametrize("allow", [True, False], ids=["microphone", "refused"])
def test_a_browser_talks_with_the_model(tmp_path, allow):
    chromium = os.environ.get("CHROMIUM") or shutil.which("chromium")
    if chromium is None:
        pytest.fail("no chromium: install the system's package of that name")
    flags = [*FLAGS, f"--user-data-dir={tmp_path / 'profile'}"]
    with server("--seed", "1") as (host, port):
        # Without the flag that grants everything, the page has to cope with a refusal.
        browser = subprocess.Popen(
            [chromium, *flags, "about:blank"], stderr=subprocess.PIPE, text=True
        )
        try:
            for line in browser.stderr:
                if "DevTools listening on" in line:
                    devtools = int(line.split(":")[-1].split("/")[0])
                    break
            address = f"http://{host}:{port}/"
            page, facts = asyncio.run(talk(devtools, address, tmp_path, allow))
        finally:
            browser.kill()
            browser.wait()
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
    if allow:
        assert facts["problem"] == ""
        assert facts["said"].strip(), "no text"
        assert facts["fact-latency"].endswith("ms")
        # Printed above. A machine that is busy with other work drops some; most must be heard.
        assert int(facts["fact-dropped"]) < SECONDS * 12.5 / 2
        assert facts["after"] == "Not connected."
    else:
        assert "not allowed" in facts["problem"]
