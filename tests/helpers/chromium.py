"""A headless Chromium, driven through its debugging port; tests that need one are skipped where there is none."""

import asyncio
import base64
import itertools
import os
import re
import shutil
import subprocess
import time
from contextlib import contextmanager
from pathlib import Path

import aiohttp
import pytest

PROGRAM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
FLAGS = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync"]
FLAGS += ["--disable-background-networking", "--disable-component-update", "--remote-debugging-port=0"]
needs_chromium = pytest.mark.skipif(PROGRAM is None, reason="no Chromium on this machine")


@contextmanager
def chromium(folder: Path):
    """Yields the port of a browser that keeps everything in ``folder``."""
    log = (folder / "chromium.log").open("w+")
    process = subprocess.Popen(
        [PROGRAM, *FLAGS, f"--user-data-dir={folder / 'profile'}", "about:blank"],
        stderr=log,
        stdout=subprocess.DEVNULL,
        env={**os.environ, "HOME": str(folder)},
    )
    try:
        for _ in range(600):
            found = re.search(r"ws://127\.0\.0\.1:(\d+)/", (folder / "chromium.log").read_text())
            if found:
                break
            time.sleep(0.1)
        yield int(found[1])
    finally:
        process.kill()
        process.wait()
        log.close()


class Tab:
    """One page. Everything is awaited until it is true, for at most half a minute."""

    def __init__(self, socket: aiohttp.ClientWebSocketResponse):
        self._socket, self._numbers = socket, itertools.count(1)

    @classmethod
    async def open(cls, session: aiohttp.ClientSession, port: int, address: str) -> "Tab":
        async with session.put(f"http://127.0.0.1:{port}/json/new?about:blank") as answer:
            target = await answer.json()
        tab = cls(await session.ws_connect(target["webSocketDebuggerUrl"], max_msg_size=0))
        await tab.call("Page.enable")
        await tab.go(address)
        return tab

    async def call(self, method: str, **parameters):
        """One command of the DevTools protocol."""
        number = next(self._numbers)
        await self._socket.send_json({"id": number, "method": method, "params": parameters})
        while True:
            answer = await self._socket.receive_json()
            if answer.get("id") == number:
                assert "error" not in answer, answer
                return answer["result"]

    async def go(self, address: str) -> None:
        await self.call("Page.navigate", url=address)

    async def look(self, expression: str):
        """What the expression is on the page now."""
        found = await self.call("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in found, found
        return found["result"].get("value")

    async def until(self, expression: str, wanted=True):
        """Wait until the expression is ``wanted``."""
        found = None
        for _ in range(300):
            found = await self.look(f"(() => {{ try {{ return {expression} }} catch (e) {{ return null }} }})()")
            if found == wanted:
                return
            await asyncio.sleep(0.1)
        raise AssertionError(f"{expression} is {found!r}, not {wanted!r}")

    async def press(self, key: str) -> None:
        """A key goes down and up."""
        text = {"text": key} if len(key) == 1 else {}
        await self.call("Input.dispatchKeyEvent", type="keyDown", key=key, **text)
        await self.call("Input.dispatchKeyEvent", type="keyUp", key=key)

    async def choose(self, name: str, value: str) -> None:
        """An entry of the list whose id is ``name``."""
        chosen = f"document.getElementById('{name}')"
        await self.look(f"{chosen}.value = '{value}', {chosen}.onchange()")

    async def picture(self, path: Path, *, width: int, height: int, dark: bool = False) -> None:
        """A screenshot."""
        scheme = [{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}]
        await self.call("Emulation.setEmulatedMedia", features=scheme)
        await self.call(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=width < 500
        )
        await asyncio.sleep(0.5)
        shot = await self.call("Page.captureScreenshot", format="png")
        path.write_bytes(base64.b64decode(shot["data"]))
