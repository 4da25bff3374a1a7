"""Execute a run: lock its directory, handle signals and failures, and call ``training.train``."""

import os
from typing import NoReturn

from triptych.errors import (
    Diverged,
    ForeignCheckpoint,
    Interrupted,
    StorageError,
    Unreadable,
)
from triptych.run.directory import NEXT_CONFIG, RunDirectory, log_line
from triptych.run.processes import SWEEP, rank
from triptych.run.provenance import add_missing_id
from triptych.run.result import Result
from triptych.run.session import Session
from triptych.run.stopping import Stop, is_broken_connection, requeue, write_error_file
from triptych.run.training import train
from triptych.run.untrusted import is_composed_here

COMPILER_MODULES = ("torch._dynamo.", "torch._inductor.")  # errors caused by compile=true
PATIENCE = 5.0  # seconds to wait for the lock: a killed sweep's job may need a moment to release it


def execute(run: RunDirectory) -> Result:
    """Execute a run to its end and return its result; a finished run is not executed again.

    Raises:
        Interrupted, Busy, StorageError, ForeignCheckpoint, Unreadable: the run can be resumed, and
            nothing is recorded.
        Diverged, UserError and others: the run failed; the error is recorded. If this command has
            created the directory and the run could not be built, the directory is removed.
    """
    if rank() != 0:
        with Stop() as stop:
            return _execute_other_rank(Session(run, stop))
    with run.lock(PATIENCE), Stop() as stop:
        recorded = run.read_records()
        if recorded is not None and recorded.status == "finished":
            return recorded
        add_missing_id(run)
        run.remove_temporary_files()
        return _execute_rank_zero(Session(run, stop))


def _execute_other_rank(session: Session) -> Result:
    """Execute the run in a rank other than 0, while rank 0 holds the directory's lock.

    An error is written to a file, for rank 0 to report.
    """
    try:
        return _train(session)
    except Exception as error:
        if not isinstance(error, Diverged) and not is_broken_connection(error):
            session.log_traceback()
            write_error_file(session.run, error)
        raise


def _execute_rank_zero(session: Session) -> Result:
    """Execute the run in rank 0, which records the outcome and ends the other ranks."""
    run = session.run
    try:
        return _train_or_drop_changes(session)
    except Interrupted as stopped:
        if not run.config()["name"] and not os.environ.get(SWEEP):
            # Without a name, repeating the command would start a new run in a new directory.
            stopped.fix = f"resume with triptych-train resume={run.path}"
        requeue(stopped)
        raise
    except (StorageError, ForeignCheckpoint, Unreadable):
        raise  # The run can be resumed once the disk has space or its files are restored.
    except Diverged as error:
        entries = {"stage": session.stage, "error": str(error), "step": error.step}
        session.record("diverged", entries)
        raise
    except Exception as error:
        _record_and_raise(session, error)
    finally:
        if run.status != "finished":
            session.peers.end()


def _train_or_drop_changes(session: Session) -> Result:
    """Call ``_train``; drop changed settings of a run that does not get to its training."""
    try:
        return _train(session)
    except BaseException:
        if session.stage == "build":
            (session.run / NEXT_CONFIG).unlink(missing_ok=True)
        raise


def _record_and_raise(session: Session, error: Exception) -> NoReturn:
    """Record and raise the error that made the run fail, perhaps in another rank."""
    received = session.stop.received
    if received is not None and type(error).__module__.startswith(COMPILER_MODULES):
        raise Interrupted(received) from None  # The signal also stopped the compiler's processes.
    reason = session.peers.original_error(error)
    building = session.stage == "build"
    if isinstance(reason, Exception) and not (building and _was_begun_before(session.run)):
        session.record_failure(reason)
    if building and is_composed_here(session.run):
        _remove_unbuilt_run(session.run, reason)
    if reason is error:
        raise error
    raise reason from None


def _remove_unbuilt_run(run: RunDirectory, reason: BaseException) -> None:
    """Remove the run that this command has created; put back the run that it had replaced."""
    if not run.restore_replaced():
        run.discard()
        return
    # A sweep reads the reason from the log; otherwise the earlier run's log stays as it was.
    log = run if os.environ.get(SWEEP) else None
    log_line(log, f"the earlier run is back, as force=true failed: {reason}")


def _was_begun_before(run: RunDirectory) -> bool:
    """Return whether an earlier start has left something that a failed build must not change.

    This is a checkpoint, or the record of how its training failed. In a sweep, where the report
    shows why a run does not go on, it is only the record.
    """
    recorded = run.summary()
    if recorded is not None:
        return recorded.stage != "build"
    return bool(run.checkpoints()) and not os.environ.get(SWEEP)


def _train(session: Session) -> Result:
    """Call ``train``; convert sys.exit() in user-supplied code to an error.

    Otherwise the run would seem to have finished.
    """
    try:
        return train(session)
    except SystemExit as left:
        if isinstance(left.__context__, KeyboardInterrupt):  # Lightning exits like this on Ctrl-C.
            raise
        raise RuntimeError(f"sys.exit({left.code}) ended the run") from left
