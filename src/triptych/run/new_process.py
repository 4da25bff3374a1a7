"""Call a function in a new process, which has none of this one's state.

A server process imports the libraries of such calls once, and is forked for each call.
"""

import ctypes
import os
import pickle
import signal
import subprocess
import sys
import traceback
from collections.abc import Callable
from importlib import import_module
from typing import Any

from triptych.errors import UserError
from triptych.run.jobs import PR_SET_PDEATHSIG
from triptych.run.stopping import failure_line

PRELOADED = "triptych.run.final"
# Without -P, modules of the current folder would shadow others.
PROGRAM = [sys.executable, "-P", "-c", "from triptych.run.new_process import serve; serve()"]
_start: dict[str, Any] = {}  # arguments of Popen with the state before user code ran
_servers: list[Any] = []  # the one server of this process, or none yet


class FailedCall(UserError):
    """An error in the new process, in one line; its traceback is a note."""


def remember_environment() -> None:
    """Record environment, folder and paths for new processes, because user code may change them."""
    for server in _servers:  # An earlier run in this process has left it open.
        server.stdin.close()
    _servers.clear()
    paths = os.pathsep.join(path or os.getcwd() for path in sys.path)  # also what was added in Python
    _start.update(env=dict(os.environ) | {"PYTHONPATH": paths}, cwd=os.getcwd())


def call_in_new_process(function: Callable[..., Any], *arguments: Any) -> Any:
    """Return ``function(*arguments)``, computed in a process without this one's state.

    User code may keep state in classes, modules, the environment and patched functions, which a
    model built again in this process would share with the fit. Arguments and value are pickled.

    A UserError of the function is raised again. FailedCall: another error, or a killed process.
    """
    if not _servers or _servers[0].poll() is not None:
        _servers[:] = [_start_server()]
    server = _servers[0]
    answered = False
    try:
        pickle.dump((function, arguments), server.stdin)
        server.stdin.flush()
        answer = pickle.load(server.stdout)
        answered = True
    except (EOFError, BrokenPipeError):
        raise FailedCall(f"a process of the run ended with exit code {server.wait()}") from None
    finally:
        if not answered and server.poll() is None:  # the run was stopped meanwhile
            os.killpg(server.pid, signal.SIGKILL)
    if isinstance(answer, Exception):
        raise answer
    return answer


def _start_server() -> Any:
    if not _start:
        remember_environment()
    pipe = subprocess.PIPE
    return subprocess.Popen(PROGRAM, stdin=pipe, stdout=pipe, process_group=0, **_start)


def serve() -> None:
    """Fork for each call on standard input and answer on standard output, until the caller ends."""
    _end_with_parent()
    calls, answers = sys.stdin.buffer, os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # output of user code must not mix with the answers
    import_module(PRELOADED)
    while True:
        try:
            call = pickle.load(calls)
        except EOFError:
            return
        pid = os.fork()
        if pid == 0:
            _end_with_parent()
            answers.write(pickle.dumps(_answer(*call)))
            answers.flush()
            os._exit(0)  # at once, without waiting for threads of user code
        code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        if code:
            answers.write(pickle.dumps(FailedCall(f"a process of the run ended with exit code {code}")))
            answers.flush()


def _answer(function: Callable[..., Any], arguments: tuple[Any, ...]) -> Any:
    """Return the function's value, or its error with the traceback as a note."""
    try:
        return function(*arguments)
    except Exception as error:
        failed: UserError = FailedCall(failure_line(error))
        if isinstance(error, UserError):
            failed = error
        failed.add_note(traceback.format_exc())
        return failed


def _end_with_parent() -> None:
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
