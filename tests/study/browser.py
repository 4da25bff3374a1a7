"""A real headless Chromium, driven through its debugging pipe: one start serves many checks."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import select
import shutil
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

CHROMIUM = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)
FLAGS = (
    "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync --hide-scrollbars --remote-debugging-pipe"
).split()


class Browser:
    """One tab of a browser.

    `complaints` has the errors of its pages, `requests` their requests to the network.
    """

    def __init__(self, profile: Path, timeout: float = 60.0):
        assert CHROMIUM is not None
        self.timeout = timeout
        to_browser, self._write = os.pipe()
        self._read, from_browser = os.pipe()

        def numbered() -> None:  # the browser reads from 3 and writes to 4
            high = [fcntl.fcntl(fd, fcntl.F_DUPFD, 10) for fd in (to_browser, from_browser)]
            for fd, place in zip(high, (3, 4), strict=True):
                os.dup2(fd, place, inheritable=True)

        self._process = subprocess.Popen(
            [CHROMIUM, *FLAGS, f"--user-data-dir={profile}", "about:blank"],
            stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
            close_fds=False, preexec_fn=numbered, start_new_session=True,
        )  # fmt: skip
        os.close(to_browser)
        os.close(from_browser)
        self._buffer, self._count, self._session = b"", 0, None
        self.complaints: list[str] = []
        self.requests: list[str] = []
        target = next(
            t for t in self.send("Target.getTargets")["targetInfos"] if t["type"] == "page"
        )
        attached = self.send("Target.attachToTarget", targetId=target["targetId"], flatten=True)
        self._session = attached["sessionId"]
        for domain in ("Page", "Runtime", "Network", "Log"):
            self.send(f"{domain}.enable")

    def send(self, method: str, **params: Any) -> Any:
        """Send a command and return its result."""
        self._count += 1
        message: dict[str, Any] = {"id": self._count, "method": method, "params": params}
        if self._session and not method.startswith(("Browser.", "Target.")):
            message["sessionId"] = self._session
        os.write(self._write, json.dumps(message).encode() + b"\0")
        return self._until(lambda answer: answer.get("id") == message["id"])

    def _until(self, met: Any) -> Any:
        end = time.monotonic() + self.timeout
        while True:
            while b"\0" not in self._buffer:
                ready, _, _ = select.select([self._read], [], [], max(0.0, end - time.monotonic()))
                assert ready, "the browser does not answer"
                part = os.read(self._read, 2**20)
                assert part, "the browser has ended"
                self._buffer += part
            line, _, self._buffer = self._buffer.partition(b"\0")
            answer = json.loads(line)
            self._note(answer.get("method", ""), answer.get("params", {}))
            if met(answer):
                assert "error" not in answer, answer["error"]
                return answer.get("result")

    def _note(self, event: str, about: dict[str, Any]) -> None:
        if event == "Runtime.exceptionThrown":
            details = about["exceptionDetails"]
            self.complaints.append(
                details.get("exception", {}).get("description") or details["text"]
            )
        elif event == "Runtime.consoleAPICalled" and about["type"] in (
            "error",
            "warning",
            "assert",
        ):
            self.complaints.append(str([one.get("value") for one in about["args"]]))
        elif event == "Log.entryAdded" and about["entry"]["level"] in ("error", "warning"):
            self.complaints.append(about["entry"]["text"])
        elif event == "Network.requestWillBeSent":
            if not (url := about["request"]["url"]).startswith(
                ("data:", "blob:")
            ):  # of the page itself
                self.requests.append(url)

    def open(
        self,
        page: Path,
        fragment: str = "",
        width: int = 1200,
        height: int = 900,
        dark: bool = False,
    ):
        """Load a file's page anew, in a window of that size."""
        self.send("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1,
                  mobile=width < 500)  # fmt: skip
        theme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.send("Emulation.setEmulatedMedia", features=[theme])
        self.send("Page.navigate", url="about:blank")
        self.complaints.clear()
        self.requests.clear()
        self.send("Page.navigate", url=page.as_uri() + fragment)
        self._await_page("location.protocol === 'file:'")

    def reload(self) -> None:
        """Load the page again, as it does by itself while runs go on."""
        self.run("window.old = 1; location.reload()")
        self._await_page("!window.old")

    def _await_page(self, condition: str) -> None:
        """Wait until a page that meets this condition is loaded; a closing page gives errors."""
        end, loaded = time.monotonic() + self.timeout, False
        while not loaded:
            assert time.monotonic() < end, "the page does not load"
            try:
                loaded = self.run(f"{condition} && document.readyState === 'complete'")
            except AssertionError as error:
                if "navigated" not in str(error):
                    raise
        self.rest()

    def run(self, script: str) -> Any:
        """Return the value of an expression in the page."""
        done = self.send(
            "Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True
        )
        assert "exceptionDetails" not in done, done["exceptionDetails"]
        return done["result"].get("value")

    def place(self, selector: str) -> tuple[float, float]:
        """Return the middle of an element, after scrolling it into view."""
        found = self.run(
            f"(() => {{ const e = document.querySelector({json.dumps(selector)}); if (!e) return null;"
            " e.scrollIntoView({block: 'center', inline: 'center'}); const b = e.getBoundingClientRect();"
            " return [b.x + b.width / 2, b.y + b.height / 2]; })()"
        )
        assert found, f"nothing is {selector}"
        return found[0], found[1]

    def click(self, selector: str) -> None:
        """Press and release the mouse in the middle of an element."""
        x, y = self.place(selector)
        self.move(x, y)
        for kind in ("mousePressed", "mouseReleased"):
            self.send("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", clickCount=1)
        self.rest()

    def rest(self) -> None:
        """Wait until the page has finished its work and is drawn."""
        self.run(
            "new Promise(done => requestAnimationFrame(() => setTimeout(done, 0))).then(() => 1)"
        )

    def move(self, x: float, y: float) -> None:
        self.send("Input.dispatchMouseEvent", type="mouseMoved", x=x, y=y)

    def type(self, selector: str, text: str) -> None:
        """Click into a field, and replace its text."""
        self.click(selector)
        self.run(f"document.querySelector({json.dumps(selector)}).select()")
        if text:
            self.send("Input.insertText", text=text)
        else:
            for kind in ("keyDown", "keyUp"):
                self.send(
                    "Input.dispatchKeyEvent", type=kind, key="Delete", windowsVirtualKeyCode=46
                )

    def choose(self, selector: str, value: str) -> None:
        """Choose an option of a list, and send the page its change event."""
        done = self.run(
            f"(() => {{ const e = document.querySelector({json.dumps(selector)});"
            f" e.value = {json.dumps(value)}; const chosen = e.value;"
            " e.dispatchEvent(new Event('change', {bubbles: true})); return chosen; })()"
        )
        assert done == value, f"{selector} has no {value}"

    def back(self) -> None:
        """Go back in the browser's history."""
        self.run(
            "new Promise(done => { addEventListener('hashchange', done, {once: true}); history.back(); })"
            ".then(() => 1)"
        )

    def close(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait(10)
        for fd in (self._read, self._write):
            os.close(fd)
