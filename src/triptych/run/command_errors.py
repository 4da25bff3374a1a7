"""Report errors of the commands: one line on stderr, and an exit code for each kind of error."""

import os
import signal
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from hydra.errors import HydraException
from omegaconf.errors import OmegaConfBaseException
from yaml import MarkedYAMLError

from triptych.config.own_code import describe_error, error_location
from triptych.errors import Interrupted, StorageError, UserError
from triptych.files import STORAGE_ERRNOS
from triptych.run.processes import ENDING, rank, set_handlers

OURS = ("__main__", "triptych.", "hydra_plugins.triptych_")  # our modules; their errors are bugs
HYDRA_MODULES = ("hydra.", "hydra_plugins.")


@contextmanager
def one_line_errors(command: str) -> Iterator[None]:
    """Print a user error that is raised in the ``with`` block in one line, and exit.

    Any other exception is a bug and keeps its traceback. ``command`` is the name of the command,
    for explanations of Hydra's errors.
    """
    # Hydra would print errors and exit; with this variable it raises them, so that we can print.
    os.environ["HYDRA_FULL_ERROR"] = "1"
    try:
        yield
    except Interrupted as stop:
        if rank() == 0:
            print(stop, file=sys.stderr)
        sys.exit(128 + stop.signal)
    except Exception as error:
        refused = error if isinstance(error, UserError) else _to_user_error(error, command)
        if refused is None:
            raise
        if rank() == 0:
            print(f"error: {refused}", file=sys.stderr)
        sys.exit(refused.exit_code)
    # Ray replaces a StopRequest by a plain KeyboardInterrupt without the signal's number.
    except KeyboardInterrupt as interrupt:
        number = getattr(interrupt, "signal", signal.SIGINT)
        print(Interrupted(number), file=sys.stderr)
        sys.exit(128 + number)


@contextmanager
def exit_on_hook_error(command: str) -> Iterator[None]:
    """Exit on an exception in a hook, as Hydra would turn it into a warning."""
    try:
        with one_line_errors(command):
            yield
    except Exception:
        traceback.print_exc()
        sys.exit(1)


class StopRequest(KeyboardInterrupt):
    """Raised when this process receives Ctrl-C, SIGTERM or SIGHUP."""

    def __init__(self, signal_number: int):
        super().__init__(signal_number)
        self.signal = signal_number


def raise_stop_request_on_signals(on_first_signal: Callable[[int], None]) -> None:
    """Make Ctrl-C, SIGTERM and SIGHUP raise StopRequest.

    At the first such signal, ``on_first_signal`` is called before.
    """
    received: list[int] = []

    def request_stop(signal_number: int, frame: object) -> None:
        received.append(signal_number)
        if len(received) == 1:
            on_first_signal(signal_number)
        raise StopRequest(signal_number)

    set_handlers(ENDING, request_stop)


def _to_user_error(error: Exception, command: str) -> UserError | None:
    """Convert an error that the user can fix to a UserError; return None for a bug of ours."""
    from triptych.config.explain import explain

    if isinstance(error, HydraException | OmegaConfBaseException):
        return UserError(explain(error, command))
    if error_location(error):
        return UserError(describe_error(error))
    if isinstance(error, MarkedYAMLError):  # The error names the file and the line.
        return UserError(f"invalid YAML: {error}")
    if _is_hydra_error(error):
        if isinstance(error, OSError) and error.filename:
            kind = StorageError if error.errno in STORAGE_ERRNOS else UserError
            return kind(f"{error.filename}: cannot be written ({error.strerror})")
        return UserError(explain(error, command) or describe_error(error))
    if isinstance(error, PermissionError) and error.filename:
        return StorageError(f"{error.filename}: cannot be opened ({error.strerror})")
    return None


def _is_hydra_error(error: Exception) -> bool:
    """Return whether an error comes from Hydra, or from a launcher that Hydra has called."""
    if error.__cause__ is not None:
        return False  # It comes from a worker process, whose traceback is the cause.
    hydras = False
    for frame, _ in traceback.walk_tb(error.__traceback__):
        name = frame.f_globals.get("__name__", "")
        if name.startswith(OURS):
            hydras = False
        elif name.startswith(HYDRA_MODULES):
            hydras = True
    return hydras
