"""Fork the processes of a sweep's runs from a server that has imported their libraries.

A worker sends a line for each run. The server answers with the process id of the fork and, at the
fork's end, with the process id and the exit code.
"""

import atexit
import ctypes
import json
import os
import select
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from importlib import import_module
from pathlib import Path
from typing import IO, Any

from triptych.files import no_link
from triptych.run.directory import RunDirectory
from triptych.run.processes import DISTRIBUTED, GRACE, PARENT, SIGNALS, SWEEP, lives
from triptych.run.untrusted import OWN

SERVE = "--serve-jobs"  # replaces a command's arguments
PROGRAM = [sys.executable, "-m", "triptych.cli.resume", SERVE]
IMPORTS = ("triptych.run.execute", "triptych.run.loggers")
PR_SET_PDEATHSIG = 1  # the constant of linux/prctl.h
_servers: list["Server"] = []  # the one server of this process, or none yet


def run_job(argument: str, log: Path) -> int:
    """Run ``triptych-train ARGUMENT`` in a process; return its exit code.

    Its output is appended to ``log``.
    The job ends with this process, and this one with its sweep: Ctrl-C asks the job to stop and
    waits for it; the job itself notices a SIGKILL within a second.
    """
    if not _servers or _servers[0].process.poll() is not None:
        _servers[:] = [Server(log)]
    look = _do_nothing
    if _is_worker():
        look = _end_with_sweep
    try:
        return _servers[0].run(argument, log, look)
    except SystemExit:
        os._exit(1)


def _sweep() -> int:
    return int(os.environ.get(SWEEP) or 0)


def _is_worker() -> bool:
    """Return whether this process is a worker, which ends with its sweep."""
    if not lives(_sweep()):
        return "SUBMITIT_EXECUTOR" not in os.environ
    return os.getppid() == _sweep()


def _end_with_sweep() -> None:
    if os.getppid() != _sweep():
        raise SystemExit  # The sweep was killed: the job is stopped first.


def _do_nothing() -> None:
    pass


class Server:
    """The server process, from which runs are forked."""

    def __init__(self, log: Path):
        pipe = subprocess.PIPE
        with open(_writable(log), "ab", opener=no_link) as errors:
            self.process: Any = subprocess.Popen(  # Any, as its pipes may be None by its type
                PROGRAM, stdin=pipe, stdout=pipe, stderr=errors, env=_inherited(), process_group=0, bufsize=0
            )
        atexit.register(self._end)

    def _end(self) -> None:
        """Wait until the process has ended, because it holds the log open."""
        with suppress(OSError, subprocess.TimeoutExpired):
            self.process.stdin.close()
            self.process.wait(GRACE)

    def run(self, argument: str, log: Path, look: Callable[[], None]) -> int:
        """Run a fork and return its exit code.

        ``look`` is called each second; it stops the fork by raising.
        """
        pid = 0
        try:
            job = {"argument": argument, "log": _writable(log), "environment": _inherited()}
            with suppress(BrokenPipeError):
                self.process.stdin.write(json.dumps(job).encode() + b"\n")
            answer = self._answer(look)
            if len(answer) == 1:
                pid = answer[0]
                answer = self._answer(look)
            if not answer:
                return int(self.process.wait())
            return answer[1]
        except KeyboardInterrupt as interrupt:
            # The sweep's own error has the signal that came.
            self._stop(pid, getattr(interrupt, "signal", signal.SIGINT))
            raise
        except BaseException:
            self._stop(pid, signal.SIGTERM)
            raise

    def _answer(self, look: Callable[[], None]) -> list[int]:
        """Return a fork's process id, with its exit code at its end; [] without a server."""
        while not select.select([self.process.stdout], [], [], 1.0)[0]:
            look()
        return [int(number) for number in self.process.stdout.readline().split()]

    def _stop(self, pid: int, number: int) -> None:
        """Stop a fork with a signal; kill it if it does not end in time."""
        if not pid and select.select([self.process.stdout], [], [], 1.0)[0]:  # It has begun in this moment.
            answer = self._answer(_do_nothing)
            if len(answer) == 2:
                return
            pid = sum(answer)
        if not pid:
            # The server is still importing; a fork that starts now will notice that its parent is
            # gone.
            self.process.kill()
            return
        end = time.monotonic() + GRACE

        def kill_late() -> None:
            if time.monotonic() > end:
                os.kill(pid, signal.SIGKILL)

        with suppress(ProcessLookupError):
            os.kill(pid, number)
            self._answer(kill_late)


def serve() -> None:
    """Fork for each job on standard input; return in the fork with the job's log and environment.

    Only the runs handle signals. Where libraries must not be forked after import (macOS), the
    server becomes its only run.
    """
    here, answers = os.getpid(), os.fdopen(os.dup(1), "w")
    if sys.platform == "linux":
        _prepare_to_fork()
    handlers = {number: signal.signal(number, signal.SIG_IGN) for number in SIGNALS}
    job = _next_fork(answers)
    os.setpgid(0, 0)  # A terminal's Ctrl-C must come once, through the worker.
    with open(job["log"], "ab", opener=no_link) as log, open(os.devnull, "rb") as nothing:
        for number, file in enumerate((nothing, log, log)):
            os.dup2(file.fileno(), number)
    os.environ.clear()
    os.environ.update(job["environment"])
    if os.getpid() != here:
        os.environ[PARENT] = str(here)
    for number, handler in handlers.items():
        signal.signal(number, handler)
    with answers:
        print(os.getpid(), file=answers)  # From now on it may be signalled.
    sys.argv[1:] = sys.orig_argv[-1:] = [job["argument"]]


def _prepare_to_fork() -> None:
    """Import the libraries of runs; this process ends with its worker, and its runs notice it."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != int(os.environ[PARENT]):
        os._exit(1)
    for name in IMPORTS:
        import_module(name)
    first = os.environ.get(OWN)
    if first:
        import_module("triptych.run.loggers").import_libraries(RunDirectory(first))


def _next_fork(answers: IO[str]) -> dict[str, Any]:
    """Fork for each job on standard input, and return the job in the fork; exit at end of input."""
    for line in sys.stdin:
        pid = os.fork() if sys.platform == "linux" else 0
        if pid == 0:
            job: dict[str, Any] = json.loads(line)
            return job
        code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        print(pid, code, file=answers, flush=True)
    os._exit(0)  # at once: see ``leave``


def leave() -> None:
    """Exit by atexit's handlers alone, because Python's own exit takes a second."""
    if all(thread.daemon or thread is threading.main_thread() for thread in threading.enumerate()):
        atexit._run_exitfuncs()
        os._exit(0)


def _inherited() -> dict[str, str]:
    """Return a job's environment, without a rank: with one, it would train on its share alone."""
    ours = {k: v for k, v in os.environ.items() if k not in DISTRIBUTED and not k.startswith("TORCHELASTIC_")}
    # A cluster's job has no rank. Counting GPUs by CUDA would make CUDA unusable in a fork.
    return ours | {PARENT: str(os.getpid()), "PYTHONSAFEPATH": "1", "PYTORCH_NVML_BASED_CUDA_CHECK": "1"}


def _writable(log: Path) -> str:
    """Return the log's path, or the null device if the log cannot be written.

    A job on a full disk reports that itself.
    """
    with suppress(OSError), open(log, "ab", opener=no_link):
        return str(log)
    return os.devnull
