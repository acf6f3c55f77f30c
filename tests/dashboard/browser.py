"""A headless Chromium driven by its DevTools protocol: what a page logs, asks for, shows and does with keys."""

from __future__ import annotations

import base64
import json
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest
from websockets.sync.client import ClientConnection, connect

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
PATH = next((path for path in map(shutil.which, NAMES) if path), None)
needs_browser = pytest.mark.skipif(PATH is None, reason=f"none of {', '.join(NAMES)} is installed")
OPTIONS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--hide-scrollbars",
    "--remote-debugging-port=0",
]
START_S, ANSWER_S = 40.0, 40.0
KEYS = {"Tab": 9, "Enter": 13, " ": 32, "Escape": 27}


class Tab:
    """One page in a browser context of its own.

    Attributes:
        events: what the browser told, as (method, parameters), in order.
        opened: addresses that `open` went to.
    """

    def __init__(self, socket: ClientConnection) -> None:
        self._socket = socket
        self._numbers = count(1)
        self.events: list[tuple[str, dict[str, Any]]] = []
        self.opened: set[str] = set()
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.send(f"{domain}.enable")
        self.resize(1280, 900)

    def send(self, method: str, **parameters: Any) -> dict[str, Any]:
        """One command and its result."""
        answer = self._answer(method, parameters)
        assert "error" not in answer, f"{method}: {answer['error']}"
        return dict(answer["result"])

    def _answer(self, method: str, parameters: dict[str, Any]) -> dict[str, Any]:
        number = next(self._numbers)
        self._socket.send(json.dumps({"id": number, "method": method, "params": parameters}))
        while True:
            message: dict[str, Any] = json.loads(self._socket.recv(timeout=ANSWER_S))
            if message.get("id") == number:
                return message
            if "method" in message:
                self.events.append((message["method"], message["params"]))

    def js(self, code: str) -> Any:
        """Value of an expression in the page."""
        result = self.send("Runtime.evaluate", expression=code, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in result, result
        return result["result"].get("value")

    def wait(self, code: str, seconds: float = 20.0) -> Any:
        """Value of an expression as soon as it is true; while the page changes, it may have none."""
        ends = time.monotonic() + seconds
        asked = {"expression": code, "returnByValue": True}
        while True:
            result = self._answer("Runtime.evaluate", asked).get("result", {})
            if "exceptionDetails" not in result and (value := result.get("result", {}).get("value")):
                return value
            assert time.monotonic() < ends, f"{code} did not become true; the page says: {self.text()[:2000]}"
            time.sleep(0.1)

    def open(self, url: str) -> None:
        """Go there, and wait until the page is loaded and live."""
        self.opened.add(url)
        self.send("Page.navigate", url=url)
        self.wait("location.href !== 'about:blank' && document.readyState === 'complete'")

    def live(self) -> None:
        """Wait until updates arrive."""
        self.wait("document.getElementById('connection')?.textContent === 'live'")

    def resize(self, width: int, height: int) -> None:
        """Size of the window in CSS pixels; below 600 it is a phone's."""
        self.send(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=width < 600
        )

    def prefer(self, scheme: str) -> None:
        """``light`` or ``dark``."""
        self.send("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])

    def press(self, key: str) -> None:
        """One key, down and up."""
        text = {"Enter": "\r", " ": " "}.get(key)
        pressed = {"key": key, "code": key, "windowsVirtualKeyCode": KEYS[key]}
        self.send("Input.dispatchKeyEvent", type="keyDown", **pressed, **({"text": text} if text else {}))
        self.send("Input.dispatchKeyEvent", type="keyUp", **pressed)

    def text(self) -> str:
        """What a person can read."""
        return str(self.js("document.body.innerText"))

    def screenshot(self, path: Path) -> None:
        """The whole page as a PNG."""
        size = self.send("Page.getLayoutMetrics")["cssContentSize"]
        clip = {"x": 0, "y": 0, "width": size["width"], "height": min(size["height"], 6000), "scale": 1}
        picture = self.send("Page.captureScreenshot", clip=clip, captureBeyondViewport=True)
        path.write_bytes(base64.b64decode(picture["data"]))

    @property
    def complaints(self) -> list[str]:
        """Errors and warnings of the console, refused by the policy or thrown by a script."""
        found = []
        for method, told in self.events:
            if method == "Runtime.exceptionThrown":
                found.append(str(told["exceptionDetails"]))
            elif method == "Log.entryAdded" and told["entry"]["level"] in ("error", "warning"):
                found.append(f"{told['entry']['text']} {told['entry'].get('url', '')}")
            elif method == "Runtime.consoleAPICalled" and told["type"] in ("error", "warning", "assert"):
                found.append(str(told["args"]))
        return found

    @property
    def hosts(self) -> set[str]:
        """Every HOST:PORT that the page sent a request to."""
        asked = [told["request"]["url"] for method, told in self.events if method == "Network.requestWillBeSent"]
        return {urlsplit(url).netloc for url in asked if not url.startswith("data:")}


class Browser:
    """A running Chromium."""

    def __init__(self, address: str, socket: ClientConnection) -> None:
        self._address, self._socket = address, socket

    @contextmanager
    def tab(self) -> Iterator[Tab]:
        """An empty page that shares no cookies with others."""
        context = self._send("Target.createBrowserContext")["browserContextId"]
        target = self._send("Target.createTarget", url="about:blank", browserContextId=context)["targetId"]
        try:
            with connect(f"ws://{self._address}/devtools/page/{target}", max_size=1 << 27, close_timeout=1) as socket:
                yield Tab(socket)
        finally:
            self._send("Target.disposeBrowserContext", browserContextId=context)

    def _send(self, method: str, **parameters: Any) -> dict[str, Any]:
        self._socket.send(json.dumps({"id": 1, "method": method, "params": parameters}))
        while True:
            message = json.loads(self._socket.recv(timeout=ANSWER_S))
            if message.get("id") == 1:
                assert "error" not in message, f"{method}: {message['error']}"
                return dict(message["result"])


@contextmanager
def chromium(profile: Path) -> Iterator[Browser]:
    """A new Chromium with an empty profile."""
    process = subprocess.Popen(
        [str(PATH), *OPTIONS, f"--user-data-dir={profile}", "about:blank"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        file, ends = profile / "DevToolsActivePort", time.monotonic() + START_S
        while not (file.is_file() and file.read_text()):
            assert process.poll() is None, "Chromium ended at its start"
            assert time.monotonic() < ends, "Chromium opened no port"
            time.sleep(0.1)
        address = f"127.0.0.1:{file.read_text().split()[0]}"
        with connect(httpx.get(f"http://{address}/json/version").json()["webSocketDebuggerUrl"]) as socket:
            yield Browser(address, socket)
    finally:
        process.terminate()
        process.wait(20)
