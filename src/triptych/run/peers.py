"""Find out which rank ended a run, and why: each but the first leaves its error in the run's directory."""

import contextlib
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

from triptych.config.own_code import describe_error
from triptych.errors import Interrupted, UserError
from triptych.files import load_object
from triptych.run.directory import RunDirectory
from triptych.run.processes import launch, rank

PATIENCE = 5.0  # seconds in which the others' errors and exit codes are there, if there are any
STUCK = 10.0  # seconds after which a first process that has not noticed the loss will not do so any more
BROKEN = re.compile(
    r"gloo|nccl|connection (was )?(closed|reset|refused)|broken pipe|recvValue|sendBytes|socket timeout", re.I
)


def is_broken_connection(error: BaseException) -> bool:
    """Return whether an error only reports the loss of another rank."""
    import torch

    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, torch.distributed.DistError) or (
            isinstance(seen, RuntimeError | ConnectionError | OSError) and BROKEN.search(str(seen))
        ):
            return True
        seen = seen.__cause__
    return False


def failure_line(error: Exception) -> str:
    """Format an error in one line; unexpected ones with their type."""
    return " ".join((str(error) if isinstance(error, UserError) else describe_error(error)).split())


def leave_error(run: RunDirectory, error: Exception) -> None:
    """Write this rank's error for rank 0 to read."""
    if not run.path.is_dir():  # the first process was refused alike, and has removed it
        return
    with contextlib.suppress(Exception):  # without it, the first process knows of a loss and not its reason
        token = launch() or str(os.getppid())
        run.write(f".error-{rank()}.json", {"token": token, "error": failure_line(error)})


class Peers:
    """The other ranks of the run, seen from rank 0; ``record`` writes a failure into the run's summary."""

    def __init__(self, run: RunDirectory, record: Callable[[Exception], None]):
        self.run, self.record = run, record
        self.children: list[subprocess.Popen[Any]] = []
        self._settled = threading.Event()

    def watch(self, children: list[subprocess.Popen[Any]]) -> None:
        """Watch the processes that Lightning has started."""
        self.children = children
        threading.Thread(target=self._watch, daemon=True).start()

    def needed_no_more(self) -> None:
        """Stop watching: the rest is done by rank 0 alone."""
        self._settled.set()

    def reason(self, error: Exception | None) -> Exception | Interrupted:
        """Return the error that ended the run; ``error`` is this rank's, perhaps only a lost connection."""
        self._settled.set()
        if error is not None and not is_broken_connection(error):
            return error
        until = time.monotonic() + PATIENCE
        while True:
            if report := self._first_report():
                number, line = report
                return UserError(f"process {number}: {line} (traceback: {self.run / 'train.log'})")
            for number, child in enumerate(self.children, 1):
                if (code := child.poll()) is not None and code < 0:
                    return Interrupted(-code, lost=f"process {number}")
            if time.monotonic() > until:
                return Interrupted(int(signal.SIGKILL), lost="another process")
            time.sleep(0.05)

    def end(self) -> None:
        """Kill the remaining ranks: they wait in a collective and have nothing to save."""
        for child in self.children:
            if child.poll() is None:
                child.kill()

    def _first_report(self) -> tuple[int, str] | None:
        reports = []
        for path in self.run.path.glob(".error-*.json"):
            if (record := load_object(path)).get("token") == (launch() or str(os.getpid())):
                number = int(path.stem.rpartition("-")[2])
                reports.append((path.stat().st_mtime, number, str(record["error"])))
        return min(reports)[1:] if reports else None

    def _watch(self) -> None:
        while not self._settled.wait(0.5):
            codes = [child.poll() for child in self.children]
            if all(code == 0 for code in codes):
                return
            if any(codes) and not self._settled.wait(STUCK):
                break
        else:
            return
        reason = self.reason(None)  # rank 0 hangs in a collective with a rank that is gone
        code = 1
        try:
            if isinstance(reason, Interrupted):
                print(reason, file=sys.stderr, flush=True)
                code = 128 + reason.signal
            else:
                print(f"error: {reason}", file=sys.stderr, flush=True)
                self.record(reason)
        finally:
            self.end()
            os._exit(code)
