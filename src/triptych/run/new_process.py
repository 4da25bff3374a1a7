"""Call a function in a new process, which shares no state with this one.

To save time, one server process of each thread imports the needed modules, and is forked for each
call.
"""

import ctypes
import mmap
import os
import pickle
import signal
import subprocess
import sys
import threading
import traceback
from collections.abc import Callable
from contextlib import suppress
from importlib import import_module
from typing import Any

from triptych.config.own_code import import_from_sources, original_environment
from triptych.errors import Interrupted, UserError
from triptych.run.jobs import PR_SET_PDEATHSIG
from triptych.run.stopping import BrokenGroup, failure_line, is_broken_connection

PRELOADED = "triptych.run.final"
PROGRAM = "from triptych.run.new_process import serve; serve({parent})"
Sources = dict[str, tuple[str, bytes]]
# {argument of Popen: its value}: environment and working directory of this process before it ran
# user-supplied code.
_start: dict[str, Any] = {}


class _OfThread(threading.local):
    """The server of a thread, as the kernel ends it with the thread that has started it."""

    server: Any = None  # None before the thread's first call


_of_thread = _OfThread()


class FailedCall(UserError):
    """An error in the new process, as one line; the traceback is attached as a note."""


def remember_environment() -> None:
    """Save environment, working directory and sys.path for new processes, before user code runs."""
    if _of_thread.server is not None:  # An earlier run in this thread has started it.
        _of_thread.server.stdin.close()
        _of_thread.server = None
    # sys.path also has paths that were added in Python.
    paths = os.pathsep.join(path or os.getcwd() for path in sys.path)
    _start.update(env=original_environment() | {"PYTHONPATH": paths}, cwd=os.getcwd())


def call_in_new_process(
    function: Callable[..., Any], *arguments: Any, sources: Sources | None = None
) -> Any:
    """Return ``function(*arguments)``, computed in a new process without this process's state.

    User-supplied code may keep state in classes, modules, the environment and patched functions. A
    model that is rebuilt in this process would share that state with the fit. Arguments and the
    returned value are pickled.

    Args:
        sources: {module: (path, source)} of modules that the new process imports from these sources
            instead of their files, which may have been edited meanwhile.

    Raises:
        UserError: the function has raised it.
        FailedCall: the function has raised another error, or ended the process.
        Interrupted: the process was killed, as for want of memory.
    """
    if _of_thread.server is None or _of_thread.server.poll() is not None:
        _of_thread.server = _start_server()
    server = _of_thread.server
    answered = False
    try:
        pickle.dump((sources or {}, function, arguments), server.stdin)
        server.stdin.flush()
        answer = pickle.load(server.stdout)
        answered = True
    except (EOFError, BrokenPipeError, pickle.UnpicklingError):  # an answer may be cut off
        raise _error_of_lost_process(server.wait()) from None
    finally:
        if not answered and server.poll() is None:  # The run was stopped during the call.
            os.killpg(server.pid, signal.SIGKILL)
    if isinstance(answer, Exception):
        raise answer
    return answer


def _error_of_lost_process(code: int) -> Exception | Interrupted:
    """Return the error for a process that ended with this exit code before it answered."""
    if code < 0:
        return Interrupted(-code, lost_process="a process of the run")
    return FailedCall(f"a process of the run stopped with exit code {code}")


def _start_server() -> Any:
    """Start the process that is forked for each call."""
    if not _start:
        remember_environment()
    # -P: modules in the current folder must not shadow installed ones.
    line = [sys.executable, "-P", "-c", PROGRAM.format(parent=os.getpid())]
    pipe = subprocess.PIPE
    return subprocess.Popen(line, stdin=pipe, stdout=pipe, process_group=0, **_start)


def serve(parent: int) -> None:
    """Fork for each call on standard input, and write its result to standard output.

    The server ends when the calling process ``parent`` ends, and as a forked process does that ends
    without an answer.
    """
    _end_with(parent)
    calls, answers = sys.stdin.buffer, os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # Redirect prints to stderr, so that they do not mix with answers.
    import_module(PRELOADED)
    answered = mmap.mmap(-1, 1)  # shared with the forked processes
    while True:
        try:
            call = pickle.load(calls)
        except EOFError:
            return
        answered[0] = 0
        server, pid = os.getpid(), os.fork()
        if pid == 0:
            _end_with(server)
            with suppress(BrokenPipeError):  # The calling process has ended.
                answers.write(pickle.dumps(_call_or_error(*call)))
                answers.flush()
                answered[0] = 1
            os._exit(0)  # Exit without waiting for threads that user-supplied code has started.
        code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        if not answered[0]:
            _end_like(code)


def _end_like(code: int) -> None:
    """End this process with the exit code of another one, or by the signal that has killed it."""
    if code < 0:
        os.kill(os.getpid(), -code)
    os._exit(code)


def _call_or_error(
    sources: Sources, function: Callable[..., Any], arguments: tuple[Any, ...]
) -> Any:
    """Return the function's value, or the error that it raised, with the traceback as a note."""
    import_from_sources(sources)
    try:
        return function(*arguments)
    except Exception as error:
        failed: Exception = FailedCall(failure_line(error))
        if isinstance(error, UserError):
            failed = error
        elif is_broken_connection(error):
            failed = BrokenGroup(failure_line(error))
        failed.add_note(traceback.format_exc())
        return failed


def _end_with(parent: int) -> None:
    """Have the kernel kill this process when its parent ends (on Linux)."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # The parent has ended before.
        os._exit(1)
