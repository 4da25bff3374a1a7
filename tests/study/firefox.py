"""A real headless Firefox with the interface of `Browser`, driven through Marionette."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import time
from pathlib import Path
from typing import Any

from .browser import Browser

FIREFOX = next(filter(None, map(shutil.which, ("firefox", "firefox-esr"))), None)
PREFERENCES = {
    "marionette.port": 0,
    "browser.shell.checkDefaultBrowser": False,
    "datareporting.policy.dataSubmissionEnabled": False,
    "app.update.disabledForTesting": True,
    "network.captive-portal-service.enabled": False,
    "network.connectivity-service.enabled": False,
    "toolkit.telemetry.reportingpolicy.firstRun": False,
}
DARK = "layout.css.prefers-color-scheme.content-override"  # 0: dark, 1: light


class Firefox(Browser):
    """One tab of Firefox."""

    def __init__(self, profile: Path, timeout: float = 60.0):
        assert FIREFOX is not None
        self.timeout, self._count = timeout, 0
        lines = (f"user_pref({json.dumps(k)}, {json.dumps(v)});" for k, v in PREFERENCES.items())
        (profile / "user.js").write_text("\n".join(lines))
        self._process = subprocess.Popen(
            [FIREFOX, "--headless", "--marionette", "--remote-allow-system-access", "--no-remote",
             "--profile", str(profile)],
            stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
            env=os.environ | {"HOME": str(profile)}, start_new_session=True,
        )  # fmt: skip
        port, end = profile / "MarionetteActivePort", time.monotonic() + timeout
        while not (port.exists() and port.read_text().strip()):
            assert time.monotonic() < end and self._process.poll() is None, "Firefox does not start"
            time.sleep(0.05)
        self._stream = socket.create_connection(
            ("127.0.0.1", int(port.read_text())), timeout
        ).makefile("rwb")
        self._receive()  # a greeting
        self.send("WebDriver:NewSession")

    def send(self, method: str, **params: Any) -> Any:
        """Send a command and return its result."""
        self._count += 1
        text = json.dumps([0, self._count, method, params]).encode()
        self._stream.write(b"%d:%s" % (len(text), text))
        self._stream.flush()
        _, number, error, result = self._receive()
        assert number == self._count and error is None, error
        return result

    def _receive(self) -> Any:
        length = b""
        while (letter := self._stream.read(1)) != b":":
            assert letter, "the browser has ended"
            length += letter
        return json.loads(self._stream.read(int(length)))

    def _privileged(self, script: str, *arguments: Any) -> Any:
        """Return the value of a privileged script."""
        self.send("Marionette:SetContext", value="chrome")
        try:
            return self.send("WebDriver:ExecuteScript", script=script, args=list(arguments))[
                "value"
            ]
        finally:
            self.send("Marionette:SetContext", value="content")

    @property
    def complaints(self) -> list[str]:  # type: ignore[override]
        """Errors and warnings of the page's script and console."""
        return self._privileged(
            "const of = name => name.startsWith('file:');"
            "const {ConsoleAPIStorage} = { ConsoleAPIStorage: Cc['@mozilla.org/consoleAPI-storage;1']"
            ".getService(Ci.nsIConsoleAPIStorage) };"
            "return [...Services.console.getMessageArray().filter(one => one instanceof Ci.nsIScriptError"
            " && of(one.sourceName)).map(one => one.errorMessage), ...ConsoleAPIStorage.getEvents()"
            ".filter(one => of(one.filename) && ['error', 'warn', 'assert'].includes(one.level))"
            ".map(one => String(one.arguments))];"
        )

    @property
    def requests(self) -> list[str]:  # type: ignore[override]
        """The page and its requests."""
        return self.run(
            "[location.href.split('#')[0], ...performance.getEntriesByType('resource').map(one => one.name)"
            ".filter(name => !/^(data|blob):/.test(name))]"
        )

    def open(
        self,
        page: Path,
        fragment: str = "",
        width: int = 1200,
        height: int = 900,
        dark: bool = False,
    ):
        """Load a file's page anew, in a window of that size."""
        self._privileged(
            f"Services.prefs.setIntPref('{DARK}', arguments[0]); Services.console.reset();"
            "document.documentElement.style.minWidth = '0';", int(not dark),
        )  # fmt: skip
        self.send("WebDriver:Navigate", url="about:blank")
        wide, high = self.run("[outerWidth - innerWidth, outerHeight - innerHeight]")
        self.send("WebDriver:SetWindowRect", width=width + wide, height=height + high)
        self.send("WebDriver:Navigate", url=page.as_uri() + fragment)
        self.rest()

    def run(self, script: str) -> Any:
        """Return the value of an expression in the page."""
        text = (
            "const done = arguments[arguments.length - 1];"
            f"(async () => ({script}))().then(value => done([value]), error => done(String(error)));"
        )
        done = self.send("WebDriver:ExecuteAsyncScript", script=text, args=[])["value"]
        assert isinstance(done, list), done
        return done[0]

    def click(self, selector: str) -> None:
        """Press and release the mouse in the middle of an element."""
        x, y = self.place(selector)
        actions: list[Any] = [{"type": "pointerMove", "x": round(x), "y": round(y), "duration": 0}]
        actions += [{"type": kind, "button": 0} for kind in ("pointerDown", "pointerUp")]
        self.send(
            "WebDriver:PerformActions",
            actions=[{"type": "pointer", "id": "mouse", "actions": actions}],
        )
        self.rest()

    def type(self, selector: str, text: str) -> None:
        """Click into a field, and replace its text."""
        self.click(selector)
        self.run(f"document.querySelector({json.dumps(selector)}).select()")
        keys = [
            {"type": kind, "value": key}
            for key in text or "\ue017"
            for kind in ("keyDown", "keyUp")
        ]
        self.send(
            "WebDriver:PerformActions", actions=[{"type": "key", "id": "keys", "actions": keys}]
        )

    def close(self) -> None:
        self._stream.close()
        os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait(10)
