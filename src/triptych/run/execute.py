"""Execute a run: its lock, signals, other processes and failures around ``training``."""

import os
from typing import NoReturn

from triptych.errors import (
    Diverged,
    ForeignCheckpoint,
    Interrupted,
    StorageError,
    Unreadable,
)
from triptych.run.directory import RunDirectory
from triptych.run.new_process import remember_environment
from triptych.run.processes import SWEEP, rank
from triptych.run.provenance import add_missing_id
from triptych.run.result import Result
from triptych.run.session import Session
from triptych.run.stopping import Stop, is_broken_connection, leave_error, requeue
from triptych.run.training import train
from triptych.run.untrusted import is_composed_here

COMPILER = ("torch._dynamo.", "torch._inductor.")
PATIENCE = 5.0  # seconds in which a job of a killed sweep frees its directory


def execute(run: RunDirectory) -> Result:
    """Execute a run to its end and return its result; a finished run is not executed again.

    Raises:
        Interrupted, Busy, StorageError, ForeignCheckpoint, Unreadable: the run can be resumed.
        Diverged, UserError and others: they are recorded. If the run could not be built and its
            directory is new, the directory is removed.
    """
    remember_environment()
    if rank() != 0:
        with Stop() as stop:
            return _execute_beside(Session(run, stop))
    with run.lock(PATIENCE), Stop() as stop:
        recorded = run.read_records()
        if recorded is not None and recorded.status == "finished":
            return recorded
        run.clear_failure()
        add_missing_id(run)
        run.sweep_up()
        return _execute_first(Session(run, stop))


def _execute_beside(session: Session) -> Result:
    """Execute in a process beside the first one, under the first one's lock.

    An error is left for the first process to report.
    """
    try:
        return _train(session)
    except Exception as error:
        if not isinstance(error, Diverged) and not is_broken_connection(error):
            session.log_traceback()
            leave_error(session.run, error)
        raise


def _execute_first(session: Session) -> Result:
    """Execute in the run's first process, which records the end and stops the other processes."""
    run = session.run
    try:
        return _train(session)
    except Interrupted as stopped:
        if not run.config()["name"] and not os.environ.get(SWEEP):
            # The same command would create another directory.
            stopped.fix = f"triptych-train resume={run.path} goes on"
        requeue(stopped)
        raise
    except (StorageError, ForeignCheckpoint, Unreadable):
        raise  # The run can resume once there is room, or its files are restored.
    except Diverged as error:
        about = {"stage": session.stage, "error": str(error), "step": error.step}
        session.record("diverged", about)
        raise
    except Exception as error:
        _fail(session, error)
    finally:
        if run.status != "finished":
            session.peers.end()


def _fail(session: Session, error: Exception) -> NoReturn:
    """Record why the run failed and raise the error, or the one that another process has left."""
    received = session.stop.received
    if received is not None and type(error).__module__.startswith(COMPILER):
        raise Interrupted(received) from None  # The signal went to the compiler's processes, too.
    reason = session.peers.reason(error)
    if isinstance(reason, Exception):
        session.record_failure(reason)
    if session.stage == "build" and is_composed_here(session.run):
        session.run.discard()
    if reason is error:
        raise error
    raise reason from None


def _train(session: Session) -> Result:
    """Train, and treat an exit by the user's own code as an error.

    Otherwise the run would seem to have finished.
    """
    try:
        return train(session)
    except SystemExit as left:
        if isinstance(left.__context__, KeyboardInterrupt):  # Lightning's answer to Ctrl-C
            raise
        raise RuntimeError(f"sys.exit({left.code}) ended the run") from left
