"""Call a function in a new process, which has nothing of what this one has computed."""

import multiprocessing
import os
import pickle
import signal
import threading
import traceback
from collections.abc import Callable
from contextlib import suppress
from multiprocessing.connection import Connection
from typing import Any

from tqdm import tqdm

from triptych.errors import UserError
from triptych.run.processes import PARENT, end_with_parent
from triptych.run.stopping import failure_line

PRELOADED = ["triptych.run.final"]  # imported once, by the process that is forked for each call


class FailedCall(UserError):
    """An error in the new process, in one line; its traceback is a note."""


def call_in_new_process(function: Callable[..., Any], *arguments: Any) -> Any:
    """Return ``function(*arguments)`` of a process that began without any of this one's state.

    Code of the user's own may keep state in classes, modules, files' caches and patched functions, which a
    model built anew in this process would share with the fit. Arguments and value are pickled.

    A UserError of the function's is raised again; FailedCall: another error, or the process was killed.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    receiver, sender = context.Pipe(duplex=False)
    call = pickle.dumps((function, arguments))  # PyTorch would share a tensor's memory, and wait for its end
    process = context.Process(target=_answer, args=(sender, dict(os.environ), call))
    process.start()
    sender.close()
    try:
        answer = pickle.loads(receiver.recv_bytes())
        process.join()
    except EOFError:
        process.join()
        raise FailedCall(f"a process of the run ended with exit code {process.exitcode}") from None
    finally:
        process.kill()
    if isinstance(answer, Exception):
        raise answer
    return answer


def _answer(sender: Connection, environment: dict[str, str], call: bytes) -> None:
    tqdm.set_lock(threading.RLock())  # its own is a semaphore, which would outlive a killed process
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the run, which ends this process
    os.environ.clear()
    os.environ.update(environment | {PARENT: str(os.getppid())})
    end_with_parent()
    answer: Any
    try:
        function, arguments = pickle.loads(call)
        answer = function(*arguments)
    except UserError as error:
        answer = error
        answer.add_note(traceback.format_exc())
    except Exception as error:
        answer = FailedCall(failure_line(error))
        answer.add_note(traceback.format_exc())
    with suppress(BrokenPipeError):  # the run was stopped meanwhile
        sender.send_bytes(pickle.dumps(answer))
