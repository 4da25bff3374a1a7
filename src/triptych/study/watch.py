"""The report at an address of this machine, renewed as its runs grow.

What is served is one page, held in memory: no path of a request becomes a file's. It listens to this machine
alone, and answers nothing that was asked for under another name, as a page elsewhere could.
"""

from __future__ import annotations

import base64
import hashlib
import re
import socket
import sys
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from triptych.errors import UserError
from triptych.run.read import STALE, find_runs
from triptych.study.render import Report

HOST = "127.0.0.1"
FILES = ("config.yaml", "metrics.csv", "summary.json")  # of a run: what a report is made of
MOST, TIMEOUT = 16, 10.0  # requests at a time; seconds in which a client that says nothing is given up
LONGEST = 30.0  # seconds after which a request is, however slowly it goes on
SHARE = 0.1  # of the time at most, for drawing
# only in the page that is served: look for another one now and then, and show it when there is
RELOAD = """
setInterval(async () => {
  try {
    const there = (await fetch("/", {method: "HEAD", cache: "no-store"})).headers.get("ETag");
    if (there && there !== '%s') location.reload();
  } catch { /* the server has ended */ }
}, 2000);
"""
POLICY = re.compile(r'<meta http-equiv="Content-Security-Policy" content="[^"]*">')


class Watch:
    """``with Watch(dirs, write) as watch: watch.run()``: the page of ``write()`` at ``watch.url``.

    Args:
        write: writes the report, and says where.
        port: 0: a free one.
        every: seconds between two looks at the runs' files; more where drawing takes long.

    Raises:
        UserError: the port cannot be had.
    """

    def __init__(self, dirs: Sequence[Path], write: Callable[[], Report], port: int = 0, every: float = 2.0):
        self.dirs, self.write, self.every = dirs, write, every
        self.page, self.tag = b"", ""
        self._halt = threading.Event()
        try:
            self._server = _Server((HOST, port), _handler(self))
        except OSError as error:
            raise UserError(
                f"--port {port}: {error.strerror or error}; use another port, or 0 for a free one"
            ) from None
        self.port = self._server.server_port
        self.url = f"http://{HOST}:{self.port}/"
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)

    def __enter__(self) -> Watch:
        self._renew()
        self._thread.start()
        return self

    def __exit__(self, *_: Any) -> None:
        self._server.shutdown()
        self._server.server_close()

    def run(self) -> None:
        """Renew the page whenever a run's files have changed; returns after ``stop``."""
        while not self._halt.wait(self.pause):
            if self._look() != self._seen:
                try:
                    self._renew()
                except Exception as error:  # the page that is there stays
                    why = " ".join(str(error).split()) or type(error).__name__
                    print(f"the report could not be renewed: {why}", file=sys.stderr, flush=True)

    def stop(self) -> None:
        """End ``run``."""
        self._halt.set()

    def _renew(self) -> None:
        self._seen = self._look()  # before drawing: what changes meanwhile is drawn the next time
        began = time.monotonic()
        text = self.write().html.read_text(encoding="utf-8")
        tag = f'"{hashlib.sha256(text.encode()).hexdigest()[:16]}"'
        self.page, self.tag = reloading(text, tag).encode(), tag
        self.pause = max(self.every, (time.monotonic() - began) * (1 / SHARE - 1))

    def _look(self) -> list[tuple[Any, ...]]:
        """Size and time of each file that the report is made of, and which runs show signs of life."""
        states: list[tuple[Any, ...]] = [_state(root / "sweep.json") for root in self.dirs]
        for run in (run for root in self.dirs for run in find_runs(root)):
            states += [_state(run / name) for name in FILES]
            alive = _state(run / "progress.json")
            states.append((run, bool(alive[1:]) and time.time() - alive[1] / 1e9 < STALE))
        return states


def reloading(text: str, tag: str) -> str:
    """Return the page, with a script that loads it again once the server's has another tag than ``tag``.

    A page may say which scripts run in it and that it asks for nothing: this one runs, and asks its server.
    """
    script = RELOAD % tag
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()

    def allowed(policy: re.Match[str]) -> str:
        return policy[0].replace("script-src", f"connect-src 'self'; script-src 'sha256-{digest}'", 1)

    before, body, after = text.rpartition("</body>")
    return POLICY.sub(allowed, before, count=1) + f"<script>{script}</script>\n" + body + after


def _state(path: Path) -> tuple[Any, ...]:
    try:
        status = path.stat()
    except OSError:
        return (path,)
    return path, status.st_mtime_ns, status.st_size


class _Server(ThreadingHTTPServer):
    """At most ``MOST`` requests at a time: further ones are closed, and a browser asks again."""

    def __init__(self, *args: Any):
        super().__init__(*args)
        self._since: dict[socket.socket, float] = {}

    def process_request(self, request: Any, client_address: Any) -> None:
        if len(self._since) < MOST:
            self._since[request] = time.monotonic()
            super().process_request(request, client_address)
        else:
            self.shutdown_request(request)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._since.pop(request, None)

    def service_actions(self) -> None:
        """Cut requests that take too long: what waits for them in another thread goes on."""
        for request, since in [*self._since.items()]:
            if time.monotonic() - since > LONGEST:
                with suppress(OSError):
                    request.shutdown(socket.SHUT_RDWR)

    def handle_error(self, request: Any, client_address: Any) -> None:
        if not isinstance(sys.exception(), OSError):  # the client has gone
            super().handle_error(request, client_address)


def _handler(watch: Watch) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        timeout = TIMEOUT

        def do_GET(self) -> None:
            self._answer(with_page=True)

        def do_HEAD(self) -> None:
            self._answer(with_page=False)

        def _answer(self, with_page: bool) -> None:
            names = {f"{name}:{watch.port}" for name in (HOST, "localhost")}
            if self.headers.get("Host") not in names:
                return self.send_error(HTTPStatus.FORBIDDEN)
            if self.path != "/":
                return self.send_error(HTTPStatus.NOT_FOUND)
            page, tag = watch.page, watch.tag
            self.send_response(HTTPStatus.OK)
            for name, value in (
                ("Content-Type", "text/html; charset=utf-8"),
                ("Content-Length", str(len(page))),
                ("ETag", tag),
                ("Cache-Control", "no-store"),
            ):
                self.send_header(name, value)
            self.end_headers()
            if with_page:
                self.wfile.write(page)

        def log_message(self, *_: Any) -> None:
            """Print nothing: requests are no news."""

    return Handler
