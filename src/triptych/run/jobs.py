"""Start a sweep's runs quickly, as forks of a server process that has already imported libraries.

A worker of the sweep sends the server one JSON line per run on standard input. The server forks,
and answers on standard output with the fork's process id. When the run ends, the server writes this
id and the exit code.
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

from triptych.run.directory import RunDirectory
from triptych.run.processes import DISTRIBUTED, GRACE, PARENT, SIGNALS, SWEEP, is_alive
from triptych.run.untrusted import OWN

SERVE = "--serve-jobs"  # argument that makes the resume command a server of jobs
PROGRAM = [sys.executable, "-m", "triptych.cli.resume", SERVE]
IMPORTS = ("triptych.run.execute", "triptych.run.loggers")
PR_SET_PDEATHSIG = 1  # constant from linux/prctl.h: signal sent to this process if its parent dies
_servers: list["ForkServer"] = []  # the server of this process, or empty before the first job


def run_job(argument: str, log: Path) -> int:
    """Run ``triptych-train ARGUMENT`` in a new process, and return its exit code.

    The output is appended to ``log``. The job ends when this process ends, and this process ends
    when its sweep ends: on Ctrl-C it stops the job and waits for it; if it gets a SIGKILL, the job
    notices within a second.
    """
    if not _servers or _servers[0].process.poll() is not None:
        _servers[:] = [ForkServer(log)]
    look = _do_nothing
    if _is_worker():
        look = _stop_when_sweep_ends
    try:
        return _servers[0].run(argument, log, look)
    except SystemExit:
        os._exit(1)


def _sweep_process_id() -> int:
    """Return the process id of the sweep that this process belongs to; 0 without one."""
    return int(os.environ.get(SWEEP, 0))


def _is_worker() -> bool:
    """Return whether this process is a sweep's worker, which must end when the sweep ends."""
    if not is_alive(_sweep_process_id()):
        return "SUBMITIT_EXECUTOR" not in os.environ
    return os.getppid() == _sweep_process_id()


def _stop_when_sweep_ends() -> None:
    """Raise SystemExit if the sweep that started this worker has ended."""
    if os.getppid() != _sweep_process_id():
        raise SystemExit  # The sweep was killed: ``ForkServer.run`` stops the job, then we exit.


def _do_nothing() -> None:
    pass


class ForkServer:
    """The process from which jobs are forked."""

    def __init__(self, log: Path):
        pipe = subprocess.PIPE
        with open(_writable_log(log), "ab") as errors:
            self.process: Any = subprocess.Popen(  # Any: by their types the pipes may be None
                PROGRAM,
                stdin=pipe,
                stdout=pipe,
                stderr=errors,
                env=_job_environment(),
                process_group=0,
                bufsize=0,
            )
        atexit.register(self._close)

    def _close(self) -> None:
        """Close the server's input and wait until it has ended, so that its log file is closed."""
        with suppress(OSError, subprocess.TimeoutExpired):
            self.process.stdin.close()
            self.process.wait(GRACE)

    def run(self, argument: str, log: Path, on_wait: Callable[[], None]) -> int:
        """Execute a job in a fork of the server, and return its exit code.

        ``on_wait`` is called every second while the job runs; if it raises, the job is stopped.
        """
        pid = 0
        try:
            job = {
                "argument": argument,
                "log": _writable_log(log),
                "environment": _job_environment(),
            }
            with suppress(BrokenPipeError):
                self.process.stdin.write(json.dumps(job).encode() + b"\n")
            answer = self._read_answer(on_wait)
            if len(answer) == 1:
                pid = answer[0]
                answer = self._read_answer(on_wait)
            if not answer:
                return int(self.process.wait())
            return answer[1]
        except KeyboardInterrupt as interrupt:
            # The sweep's KeyboardInterrupt carries the received signal; forward it to the job.
            self._stop(pid, getattr(interrupt, "signal", signal.SIGINT))
            raise
        except BaseException:
            self._stop(pid, signal.SIGTERM)
            raise

    def _read_answer(self, on_wait: Callable[[], None]) -> list[int]:
        """Read one answer: [process id] or [process id, exit code]; [] if the server has ended."""
        while not select.select([self.process.stdout], [], [], 1.0)[0]:
            on_wait()
        return [int(number) for number in self.process.stdout.readline().split()]

    def _stop(self, pid: int, signal_number: int) -> None:
        """Send a signal to a job, and kill it if it does not end within ``GRACE`` seconds."""
        # Without a process id, wait a second: the job may be starting right now.
        if not pid and select.select([self.process.stdout], [], [], 1.0)[0]:
            answer = self._read_answer(_do_nothing)
            if len(answer) == 2:
                return
            if answer:
                pid = answer[0]
        if not pid:
            # The server is still importing. A job that it forks right now notices its end.
            self.process.kill()
            return
        end = time.monotonic() + GRACE

        def kill_late() -> None:
            if time.monotonic() > end:
                os.kill(pid, signal.SIGKILL)

        with suppress(ProcessLookupError):
            os.kill(pid, signal_number)
            self._read_answer(kill_late)


def serve() -> None:
    """Fork for each job on standard input; the parent stays here, the child returns as the job.

    The child gets the job's arguments, log and environment. The server itself ignores signals, so
    that only the runs handle them. On macOS, where loaded libraries do not survive a fork, the
    server does not fork but becomes the run itself.
    """
    here, answers = os.getpid(), os.fdopen(os.dup(1), "w")
    if sys.platform == "linux":
        _prepare_to_fork()
    handlers = {number: signal.signal(number, signal.SIG_IGN) for number in SIGNALS}
    job = _next_fork(answers)
    # Leave the terminal's process group: Ctrl-C reaches the job once, forwarded by the worker.
    os.setpgid(0, 0)
    with (
        open(job["log"], "ab") as log,
        open(os.devnull, "rb") as nothing,
    ):
        for number, file in enumerate((nothing, log, log)):
            os.dup2(file.fileno(), number)
    os.environ.clear()
    os.environ.update(job["environment"])
    if os.getpid() != here:
        os.environ[PARENT] = str(here)
    for number, handler in handlers.items():
        signal.signal(number, handler)
    with answers:
        print(os.getpid(), file=answers)  # From now on the worker may send signals to this job.
    sys.argv[1:] = sys.orig_argv[-1:] = [job["argument"]]


def _prepare_to_fork() -> None:
    """Import the libraries that runs need; let the kernel kill this server when its worker ends.

    A run notices by itself that its server is gone.
    """
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != int(os.environ[PARENT]):
        os._exit(1)
    for name in IMPORTS:
        import_module(name)
    first = os.environ.get(OWN)
    if first:
        import_module("triptych.run.loggers").import_libraries(RunDirectory(first))


def _next_fork(answers: IO[str]) -> dict[str, Any]:
    """Fork for each job on standard input and return the job in the child.

    The server exits when its input is closed.
    """
    for line in sys.stdin:
        pid = os.fork() if sys.platform == "linux" else 0
        if pid == 0:
            job: dict[str, Any] = json.loads(line)
            return job
        code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        print(pid, code, file=answers, flush=True)
    os._exit(0)  # Skip Python's slow shutdown, as in ``exit_job``.


def exit_job() -> None:
    """Exit after atexit's handlers, without the rest of Python's shutdown, which takes a second.

    If other non-daemon threads are alive, return without exiting.
    """
    if all(thread.daemon or thread is threading.main_thread() for thread in threading.enumerate()):
        atexit._run_exitfuncs()
        os._exit(0)


def _job_environment() -> dict[str, str]:
    """Return the environment for a job, without the variables of a distributed launch.

    A job that inherited a rank would train only on that rank's share of the data.
    """
    ours = {
        k: v
        for k, v in os.environ.items()
        if k not in DISTRIBUTED and not k.startswith("TORCHELASTIC_")
    }
    # PYTHONSAFEPATH: do not import modules from the current folder, also on a cluster.
    # NVML check: counting GPUs through CUDA would make CUDA unusable in a fork.
    return ours | {
        PARENT: str(os.getpid()),
        "PYTHONSAFEPATH": "1",
        "PYTORCH_NVML_BASED_CUDA_CHECK": "1",
    }


def _writable_log(log: Path) -> str:
    """Return the log's path, or os.devnull if it cannot be written.

    On a full disk the job itself reports the error.
    """
    with suppress(OSError), open(log, "ab"):
        return str(log)
    return os.devnull
