"""Exceptions whose messages are written for the user."""

import re
from collections.abc import Sequence
from typing import Any

from triptych.terminal import as_one_line

USERINFO = re.compile(r"(\w://)[^/\s]*@")


class UserError(Exception):
    """An error that the user can fix, reported in one line: KEY=VALUE: problem; fix.

    The message may quote names and other errors; it is put on one line, with control characters
    escaped.
    """

    exit_code = 1

    def __init__(self, message: str) -> None:
        super().__init__(as_one_line(message))


class Refusals(UserError):
    """Several refusals, each in a line of its own."""

    def __init__(self, lines: Sequence[str]) -> None:
        super().__init__(" ".join(lines))
        self.lines = lines

    def __str__(self) -> str:
        return "\n       ".join(map(as_one_line, self.lines))  # aligned behind "error: "


class DataError(UserError):
    """An error in the data or their configuration."""


class ForeignCheckpoint(UserError):
    """Raised for a checkpoint in a run's directory that does not belong to this run."""


class Unreadable(UserError):
    """Raised for a malformed record of a run or sweep, which must not be removed or overwritten."""

    @property
    def problem(self) -> str:
        """The file's path and what is wrong with it, without advice."""
        return str(self.args[0])

    def __str__(self) -> str:
        return f"{self.problem}; restore it, or move it aside"


class OtherRun(UserError):
    """Raised if a directory contains a run with another configuration."""


class Busy(UserError):
    """Raised if another process is working in a directory."""

    exit_code = 75  # EX_TEMPFAIL of sysexits.h: try again later


class StorageError(UserError):
    """Raised if a file cannot be written, as on a full disk; existing files are kept."""

    exit_code = 74


class Diverged(UserError):
    """Raised if a loss, bound or weight is not finite; the run's result records this.

    ``what`` names the value, such as "the loss"; ``step`` is the step at which it was not finite,
    counted from 1.
    """

    exit_code = 3

    def __init__(self, what: str, step: int):
        super().__init__(f"diverged at step {step}: {what} is not finite")
        self.what, self.step = what, step

    def __reduce__(self) -> tuple[Any, ...]:
        return Diverged, (self.what, self.step)

    @classmethod
    def from_earlier_start(cls, error: str, step: int) -> "Diverged":
        """Build the error for a run whose result says that it diverged, from the recorded message.

        Advice for another attempt is added to the message.
        """
        earlier = cls("", step)
        UserError.__init__(
            earlier,
            f"{error.replace('diverged', 'diverged before', 1)}; force=true starts over, "
            "retry=true resumes from the last finite checkpoint",
        )
        return earlier


class Interrupted(BaseException):
    """Raised if a run was stopped by a signal and can be resumed.

    It is not an Exception, so that ``except Exception`` does not catch it.

    ``signal``: number of the signal that this process received, or that killed another rank;
    ``step``: the last saved step; ``lost_process``: the killed rank, such as "process 1", or "" if
    no rank was killed.
    """

    def __init__(self, signal: int, step: int = 0, lost_process: str = ""):
        super().__init__(signal, step, lost_process)
        self.signal, self.step, self.lost_process = signal, step, lost_process
        self.fix = "repeat the same command to resume"

    def __str__(self) -> str:
        import signal

        name = signal.Signals(self.signal).name
        if self.lost_process:
            return as_one_line(f"interrupted: {self.lost_process} was killed ({name}); {self.fix}")
        where = f" at step {self.step}" if self.step else ""
        return as_one_line(f"interrupted{where} ({name}); {self.fix}")


def mask_password(text: str) -> str:
    """Mask user name and password of each URL in ``text``, as in "http://***@host"."""
    return USERINFO.sub(r"\1***@", text)


def check_password(override: str) -> None:
    """Raise UserError for a URL with a password, which would be recorded with a run or a sweep."""
    if (masked := mask_password(override)) != override:
        raise UserError(
            f"{masked}: a password would be recorded with the run; set the address in the "
            "environment, as MLFLOW_TRACKING_URI"
        )
