"""Chromium for tests, spoken to over a pipe: pages are opened, looked at and used, and what they ask for is noted.

The protocol is Chrome DevTools', one JSON object a message, each ended by a zero byte; nothing listens on the network.
"""

from __future__ import annotations

import json
import os
import select
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

CHROMIUM = os.environ.get("ND_CHROMIUM") or next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), ""
)
# No sandbox: tests run as root in containers. What follows keeps the browser itself from the network.
FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run", "--disable-quic",
    "--disable-background-networking", "--disable-component-update", "--disable-sync", "--remote-debugging-pipe",
    "--hide-scrollbars",
)  # fmt: skip
SECONDS = 120.0


class Browser:
    """One Chromium process; messages that are no answers are events, kept by the page they are of."""

    def __init__(self, folder: Path) -> None:
        """Start it with a profile of its own below ``folder``."""
        (theirs_in, self.ours_out), (self.ours_in, theirs_out) = os.pipe(), os.pipe()
        script = f'exec "$@" 3<&{theirs_in} 4>&{theirs_out}'
        command = ["bash", "-c", script, "browser", CHROMIUM, *FLAGS, f"--user-data-dir={folder / 'profile'}"]
        quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        self.process = subprocess.Popen([*command, "about:blank"], pass_fds=(theirs_in, theirs_out), **quiet)  # type: ignore[call-overload]
        os.close(theirs_in)
        os.close(theirs_out)
        self.number, self.unread = 0, b""
        self.events: list[dict[str, Any]] = []

    def ask(self, method: str, session: str = "", **parameters: Any) -> dict[str, Any]:
        """Return the answer to one command."""
        self.number += 1
        message = {"id": self.number, "method": method, "params": parameters}
        os.write(self.ours_out, json.dumps(message | ({"sessionId": session} if session else {})).encode() + b"\0")
        end = time.monotonic() + SECONDS
        while True:
            answer = self._read(end)
            if answer.get("id") == self.number:
                assert "error" not in answer, f"{method}: {answer['error']}"
                result: dict[str, Any] = answer["result"]
                return result
            self.events.append(answer)

    def _read(self, end: float) -> dict[str, Any]:
        while b"\0" not in self.unread:
            ready, _, _ = select.select([self.ours_in], [], [], max(0.0, end - time.monotonic()))
            assert ready, "the browser does not answer"
            data = os.read(self.ours_in, 1 << 20)
            assert data, "the browser has ended"
            self.unread += data
        text, _, self.unread = self.unread.partition(b"\0")
        message: dict[str, Any] = json.loads(text)
        return message

    def close(self) -> None:
        """End the process."""
        self.process.terminate()
        self.process.wait(20)
        os.close(self.ours_in)
        os.close(self.ours_out)


class Page:
    """A tab with one page."""

    def __init__(self, browser: Browser, path: Path, width: int, dark: bool) -> None:
        """Open a file in a window of some width, as a reader who prefers light or dark."""
        self.browser = browser
        target = browser.ask("Target.createTarget", url="about:blank")["targetId"]
        self.target = target
        self.session = browser.ask("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Network", "Log"):
            self.ask(f"{domain}.enable")
        self.ask("Emulation.setDeviceMetricsOverride", width=width, height=900, deviceScaleFactor=1, mobile=False)
        theme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.ask("Emulation.setEmulatedMedia", features=[theme])
        self.uri = path.as_uri()
        self.ask("Page.navigate", url=self.uri)
        self.wait("document.readyState === 'complete'")

    def ask(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Return the answer to a command about this page."""
        return self.browser.ask(method, self.session, **parameters)

    def run(self, script: str) -> Any:
        """Return the value of an expression, once it is there if it is a promise."""
        found = self.ask("Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True)
        assert "exceptionDetails" not in found, found["exceptionDetails"]
        return found["result"].get("value")

    def wait(self, condition: str) -> None:
        """Wait until an expression is true."""
        end = time.monotonic() + SECONDS
        while not self.run(f"Boolean({condition})"):
            assert time.monotonic() < end, f"never so: {condition}"
            time.sleep(0.02)

    def press(self, *keys: str) -> None:
        """Press and release keys, one after the other."""
        codes = {"Enter": 13, "Escape": 27, "ArrowLeft": 37, "ArrowUp": 38, "ArrowRight": 39, "ArrowDown": 40}
        for key in keys:
            facts = {"key": key, "code": key, "windowsVirtualKeyCode": codes.get(key, 0)}
            text = {"text": "\r"} if key == "Enter" else {}
            self.ask("Input.dispatchKeyEvent", type="keyDown", **facts, **text)
            self.ask("Input.dispatchKeyEvent", type="keyUp", **facts)

    def hover(self, selector: str) -> None:
        """Put the mouse over the middle of an element."""
        box = self.run(
            f"(async () => {{ const one = document.querySelector({json.dumps(selector)}); one.scrollIntoView(); "
            "for (let k = 0; k < 3; k++) await new Promise(requestAnimationFrame); "  # scrolling is over
            "const box = one.getBoundingClientRect(); return [box.left + box.width / 2, box.top + box.height / 2]; })()"
        )
        for shift in (1, 0):
            self.ask("Input.dispatchMouseEvent", type="mouseMoved", x=box[0] + shift, y=box[1], pointerType="mouse")

    def events(self, method: str) -> list[dict[str, Any]]:
        """Return what has happened of one kind."""
        mine = [event for event in self.browser.events if event.get("sessionId") == self.session]
        return [event["params"] for event in mine if event["method"] == method]

    @property
    def complaints(self) -> list[str]:
        """What went to the console, and errors that nothing caught."""
        found = self.events("Runtime.consoleAPICalled") + self.events("Runtime.exceptionThrown")
        return [json.dumps(one) for one in (*found, *self.events("Log.entryAdded"))]

    @property
    def requests(self) -> list[str]:
        """What it asked for beside itself and what it holds in itself."""
        asked = [event["request"]["url"] for event in self.events("Network.requestWillBeSent")]
        return [url for url in asked if url != self.uri and not url.startswith("data:")]


@contextmanager
def visit(browser: Browser, path: Path, width: int = 1400, dark: bool = False) -> Iterator[Page]:
    """Open a page; at the end it must have said nothing and asked for nothing.

    Args:
        browser: that shows it.
        path: of the file.
        width: of the window.
        dark: whether the reader prefers dark.
    """
    page = Page(browser, path, width, dark)
    yield page
    page.run("new Promise((next) => setTimeout(next, 50))")  # for what is on its way
    assert page.complaints == [], page.complaints
    assert page.requests == [], page.requests
    browser.ask("Target.closeTarget", targetId=page.target)
