"""Errors of the commands: one line on stderr, and an exit code for each kind."""

import os
import signal
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from hydra.errors import HydraException
from omegaconf.errors import OmegaConfBaseException
from yaml import MarkedYAMLError

from triptych.config.own_code import describe_error, raised_at
from triptych.errors import Interrupted, StorageError, UserError
from triptych.files import STORAGE
from triptych.run.processes import ENDING, rank

OURS = ("__main__", "triptych.", "hydra_plugins.triptych_")  # modules whose errors are bugs
HYDRAS = ("hydra.", "hydra_plugins.")


@contextmanager
def one_line_errors(command: str) -> Iterator[None]:
    """Print a user's mistake in one line; any other exception is a bug and keeps its traceback.

    ``command``: the command for which Hydra's errors are explained.
    """
    # Without this, Hydra would print the error itself and exit.
    os.environ["HYDRA_FULL_ERROR"] = "1"
    try:
        yield
    except Interrupted as stop:
        if rank() == 0:
            print(stop, file=sys.stderr)
        sys.exit(128 + stop.signal)
    except Exception as error:
        refused = error if isinstance(error, UserError) else _as_refusal(error, command)
        if refused is None:
            raise
        if rank() == 0:
            print(f"error: {refused}", file=sys.stderr)
        sys.exit(refused.exit_code)
    except KeyboardInterrupt as interrupt:  # Ray replaces a StopRequest by its own
        number = getattr(interrupt, "signal", signal.SIGINT)
        print(Interrupted(number), file=sys.stderr)
        sys.exit(128 + number)


@contextmanager
def no_run_after_an_error(command: str) -> Iterator[None]:
    """Exit on an exception in the block.

    Hydra would turn an exception of a callback into a warning.
    """
    try:
        with one_line_errors(command):
            yield
    except Exception:
        traceback.print_exc()
        sys.exit(1)


class StopRequest(KeyboardInterrupt):
    """Ctrl-C, SIGTERM or SIGHUP."""

    def __init__(self, number: int):
        super().__init__(number)
        self.signal = number


def end_as_by_ctrl_c(first: Callable[[int], None]) -> None:
    """Make Ctrl-C, SIGTERM and SIGHUP end this process in the same way, after ``first(signal)``."""
    received: list[int] = []

    def request_stop(number: int, frame: object) -> None:
        received.append(number)
        if len(received) == 1:
            first(number)
        raise StopRequest(number)

    for number in ENDING:
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, request_stop)


def _as_refusal(error: Exception, command: str) -> UserError | None:
    """Return the one line for an error that the user can correct; None for one of our bugs."""
    from triptych.config.explain import explain

    if isinstance(error, HydraException | OmegaConfBaseException):
        return UserError(explain(error, command))
    if raised_at(error):
        return UserError(describe_error(error))
    if isinstance(error, MarkedYAMLError):  # it names the file and the line
        return UserError(f"no YAML: {error}")
    if _is_hydras(error):
        if isinstance(error, OSError) and error.filename:
            kind = StorageError if error.errno in STORAGE else UserError
            return kind(f"{error.filename}: cannot be written ({error.strerror})")
        return UserError(explain(error, command) or describe_error(error))
    if isinstance(error, PermissionError) and error.filename:
        return StorageError(f"{error.filename}: cannot be opened ({error.strerror})")
    return None


def _is_hydras(error: Exception) -> bool:
    """Return whether Hydra, or a launcher that it called, raised an error."""
    if error.__cause__ is not None:
        return False  # A worker's error keeps its traceback.
    hydras = False
    for frame, _ in traceback.walk_tb(error.__traceback__):
        name = frame.f_globals.get("__name__", "")
        if name.startswith(OURS):
            hydras = False
        elif name.startswith(HYDRAS):
            hydras = True
    return hydras
