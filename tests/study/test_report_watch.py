"""``triptych-report --watch``: one page, for this machine, that grows with its runs."""

import contextlib
import http.client
import http.server
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time

import pytest

from tests.study.fake_runs import running, sweep
from triptych.cli import report as cli
from triptych.study.render import write_report
from triptych.study.watch import HOST, Watch

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
FLAGS = "--headless --no-sandbox --disable-gpu --no-first-run --disable-background-networking".split()


class Watching:
    """The command in a process of its own."""

    def __init__(self, *arguments: str):
        line = [sys.executable, "-m", "triptych.cli.report", *arguments, "--watch", "--port=0"]
        self.process = subprocess.Popen(
            line, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=os.environ.copy()
        )
        said = self.process.stdout.readline()
        assert said.startswith(f"http://{HOST}:"), self.process.communicate()[1]
        self.port = int(said.split("/")[2].partition(":")[2])

    def ask(self, path: str = "/", method: str = "GET", **headers: str) -> tuple[int, dict, str]:
        """Status, headers and body; the path as it is, however it is written."""
        connection = http.client.HTTPConnection(HOST, self.port, timeout=30)
        connection.putrequest(method, path, skip_host="Host" in headers)
        for name, value in headers.items():
            connection.putheader(name, value)
        connection.endheaders()
        answer = connection.getresponse()
        try:
            return answer.status, dict(answer.headers), answer.read().decode()
        finally:
            connection.close()

    def end(self) -> tuple[int, str]:
        """Ctrl-C: the exit code, and what was said."""
        self.process.send_signal(signal.SIGINT)
        said = self.process.communicate(timeout=30)[1]
        return self.process.returncode, said


@pytest.fixture
def watch():
    started = []

    def start(*arguments: str) -> Watching:
        started.append(Watching(*arguments))
        return started[-1]

    yield start
    for one in started:
        one.process.kill()
        one.process.communicate()


def test_the_page_grows_with_its_runs_and_ctrl_c_ends_it(tmp_path, watch):
    done = sweep(tmp_path / "elsewhere", {"x0": 2.0, "v": 1.0}, seeds=(1, 2))
    root = tmp_path / "s"
    root.mkdir()
    first, *rest = sorted(done.iterdir())
    running(root, "epsilon", 1)
    shutil.copytree(first, root / first.name)
    server = watch(str(root))
    status, headers, page = server.ask()
    assert status == 200 and headers["Content-Type"] == "text/html; charset=utf-8"
    assert "1 of 2 runs finished, 1 running" in page
    assert server.ask(method="HEAD")[1]["ETag"] == headers["ETag"] and server.ask(method="HEAD")[2] == ""
    for run in rest:
        shutil.copytree(run, root / run.name)
    until = time.monotonic() + 120
    while server.ask(method="HEAD")[1]["ETag"] == headers["ETag"]:
        assert time.monotonic() < until
        time.sleep(0.2)
    while "4 of 5 runs finished" not in (page := server.ask()[2]):
        assert time.monotonic() < until
        time.sleep(0.2)
    # the page that is served looks for another one; the file that is kept does not
    assert "headers.get" in page and server.ask()[1]["ETag"] in page
    assert "headers.get" not in (root / "report.html").read_text()
    code, said = server.end()
    assert code == 0 and "Traceback" not in said


def test_nothing_but_the_page_is_served_and_to_nobody_else(tmp_path, watch):
    root = sweep(tmp_path / "s", {"x0": 2.0}, seeds=(1,))
    server = watch(str(root))
    for path in ("/report.html", "/results.csv", "/../s/results.csv", "//etc/passwd", "/%2e%2e/", "/?a=1"):
        status, _, body = server.ask(path)
        assert status == 404 and "root:" not in body and "directory" not in body, path
    assert server.ask("*", "OPTIONS")[0] == 501 and server.ask("/", "POST")[0] == 501
    # a page elsewhere whose name leads here, as after DNS rebinding
    assert server.ask(Host="example.org")[0] == 403 and server.ask(Host=f"localhost:{server.port}")[0] == 200
    with pytest.raises(OSError), socket.create_connection((_own_address(), server.port), timeout=2):
        pass


def _own_address() -> str:
    """Another address of this machine than the one that is listened to."""
    return "127.0.0.2"


def test_a_port_in_use_is_a_line(tmp_path, capsys):
    root = sweep(tmp_path / "s", {"x0": 2.0}, seeds=(1,))
    with socket.socket() as taken:
        taken.bind((HOST, 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert cli.main([str(root), "--watch", f"--port={port}"]) == 1
    [said] = capsys.readouterr().err.splitlines()
    assert f"--port {port}: Address already in use" in said
    assert cli.main([str(root), "--port", "70000"]) == 1
    assert "must be a whole number from 0 to 65535" in capsys.readouterr().err


@pytest.mark.browser
@pytest.mark.skipif(CHROMIUM is None, reason="no chromium, chromium-browser or google-chrome on PATH")
def test_a_browser_loads_the_page_again_when_there_is_another(tmp_path, monkeypatch):
    """Though the page that is kept says that it asks for nothing; nobody touches the browser."""
    seen = []
    noted = lambda handler, *_: seen.append((handler.command, handler.path))  # noqa: E731
    monkeypatch.setattr(http.server.BaseHTTPRequestHandler, "log_request", noted)
    root = sweep(tmp_path / "s", {"x0": 2.0}, seeds=(1,))

    with Watch([root], lambda: write_report(root), every=0.2) as watch:
        assert b"default-src 'none'" in watch.page and b"connect-src 'self'" in watch.page
        thread = threading.Thread(target=watch.run)
        thread.start()
        line = [CHROMIUM, *FLAGS, f"--user-data-dir={tmp_path / 'profile'}", "--remote-debugging-port=0"]
        browser = subprocess.Popen([*line, watch.url], stderr=subprocess.DEVNULL)
        try:
            until = time.monotonic() + 120
            while ("HEAD", "/") not in seen:
                assert time.monotonic() < until
                time.sleep(0.1)
            assert seen.count(("GET", "/")) == 1
            sweep(root, {"v": 1.0}, seeds=(1,))
            while seen.count(("GET", "/")) < 2:
                assert time.monotonic() < until
                time.sleep(0.1)
        finally:
            browser.kill()
            browser.wait()
            watch.stop()
            thread.join()


def test_a_sweep_that_has_no_run_yet_is_waited_for(tmp_path, watch):
    root = tmp_path / "s"
    root.mkdir()
    server = watch(str(root))
    assert "No run has reported a test bound yet" in server.ask()[2]
    running(root, "x0", 1)
    until = time.monotonic() + 60
    while "1 running" not in server.ask()[2]:
        assert time.monotonic() < until
        time.sleep(0.2)


def test_requests_that_never_end_hold_no_threads(tmp_path, monkeypatch):
    """Nor do they keep others from the page for long; one that hangs up is no traceback."""
    from triptych.study import watch as module

    monkeypatch.setattr(module, "TIMEOUT", 2.0)
    root = sweep(tmp_path / "s", {"x0": 2.0}, seeds=(1,))
    before = threading.active_count()
    with Watch([root], lambda: write_report(root)) as watch:
        half = [socket.create_connection((HOST, watch.port), timeout=10) for _ in range(100)]
        for one in half:
            with contextlib.suppress(OSError):
                one.sendall(b"GET / HTTP/1.0\r\nHo")
        time.sleep(0.5)
        assert threading.active_count() - before <= module.MOST + 1
        until = time.monotonic() + 20
        while threading.active_count() - before > 1:
            assert time.monotonic() < until
            time.sleep(0.1)
        connection = http.client.HTTPConnection(HOST, watch.port, timeout=10)
        connection.request("GET", "/")
        assert connection.getresponse().status == 200
        connection.close()
        for one in half:
            one.close()


def test_a_request_that_drips_is_given_up_too(tmp_path, monkeypatch):
    """Each byte starts the wait for the next one anew."""
    from triptych.study import watch as module

    monkeypatch.setattr(module, "LONGEST", 1.0)
    root = sweep(tmp_path / "s", {"x0": 2.0}, seeds=(1,))
    with Watch([root], lambda: write_report(root)) as watch:
        with socket.create_connection((HOST, watch.port), timeout=10) as one:
            until = time.monotonic() + 20
            with pytest.raises(OSError):
                while time.monotonic() < until:
                    one.sendall(b"G")
                    time.sleep(0.1)


def test_a_reader_that_hangs_up_is_no_news(tmp_path, capfd):
    root = sweep(tmp_path / "s", {"x0": 2.0}, seeds=(1,))
    with Watch([root], lambda: write_report(root)) as watch:
        watch.page = bytes(50_000_000)  # more than any buffer on the way
        with socket.create_connection((HOST, watch.port), timeout=10) as one:
            one.sendall(f"GET / HTTP/1.0\r\nHost: {HOST}:{watch.port}\r\n\r\n".encode())
            one.recv(1000)
        until = time.monotonic() + 20
        while any("process_request" in thread.name for thread in threading.enumerate()):
            assert time.monotonic() < until
            time.sleep(0.05)
    assert capfd.readouterr().err == ""
