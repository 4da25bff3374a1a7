"""Set up a command's process before slow imports: signals, standard streams and environment."""

import atexit
import errno
import io
import os
import signal
import sys
from collections.abc import Sequence
from contextlib import suppress
from importlib import import_module
from importlib.metadata import version
from typing import Any, TextIO

from triptych.terminal import escaped_stream

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
STARTED = "TRIPTYCH_STARTED"  # environment variable of processes that Lightning starts


def is_command() -> bool:
    """Return whether this process was started as one of the commands."""
    program = next((word for word in sys.orig_argv[1:] if not word.startswith("-")), "")
    return program.startswith("triptych.cli.") or os.path.basename(program).startswith("triptych-")


def start() -> None:
    """Set environment variables, signal handlers and standard streams of a command's process."""
    if STARTED not in os.environ and "TORCHELASTIC_RUN_ID" not in os.environ:
        # Ignore ranks in the shell's environment, as this process is rank 0 of its own run.
        for name in ("RANK", "LOCAL_RANK"):
            os.environ.pop(name, None)
    os.environ[STARTED] = "1"
    # Child processes in Python must not import modules from the current directory.
    os.environ["PYTHONSAFEPATH"] = "1"
    # Matplotlib reads this file on import. An untrusted one could start LaTeX.
    if os.path.lexists("matplotlibrc"):
        here = os.getcwd()
        os.chdir("/")
        import_module("matplotlib")
        os.chdir(here)
    for number in SIGNALS:
        if signal.getsignal(number) is not signal.SIG_IGN:  # Under nohup, SIGHUP is ignored.
            signal.signal(number, _exit_on_signal)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
    while (file := os.open(os.devnull, os.O_RDWR)) <= 2:
        # If stdout or stderr is closed, open it. Otherwise the next file to be opened would get its
        # descriptor, and printed text would go into that file.
        pass
    os.close(file)
    output, sys.stderr = _escaped_stream(1, sys.stdout), _escaped_stream(2, sys.stderr)
    sys.stdout = output
    escape_standard_streams()
    atexit.register(_flush_at_exit, output)  # called last, as it is registered first


def print_version_and_exit(arguments: Sequence[str]) -> None:
    """If ``--version`` is among a command's arguments, print the package's version and exit."""
    if "--version" in arguments:
        print(f"triptych {version('triptych')}")
        sys.exit(0)


def escape_standard_streams() -> None:
    """Escape control characters in all that this process writes to its standard streams."""
    sys.stdout, sys.stderr = escaped_stream(sys.stdout), escaped_stream(sys.stderr)


def replace_process(command: list[str]) -> None:
    """Replace this process by another program of the package (exec).

    Signals stay blocked until that program has installed its handlers.
    """
    sys.stdout.flush()
    signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    os.execv(command[0], command)


def _exit_on_signal(signal_number: int, _: Any) -> None:
    """Exit at once; rank 0 first prints a line that names the signal."""
    if all(
        os.environ.get(name) in (None, "", "0") for name in ("RANK", "LOCAL_RANK", "SLURM_PROCID")
    ):
        name = signal.Signals(signal_number).name
        line = f"interrupted ({name}); repeat the same command to resume\n"
        with suppress(OSError):
            os.write(2, line.encode())
    os._exit(128 + signal_number)  # do not raise, as imports and callbacks may catch an exception


class _EscapedOutput(io.FileIO):
    """A standard stream whose ``write`` never raises, because a failed write must not end a run."""

    lost = 0  # errno of the first write that failed, or 0

    def write(self, data: Any) -> int:
        try:
            return super().write(data)
        except OSError as error:
            self.lost = self.lost or error.errno or errno.EIO
            return len(data)


def _escaped_stream(file_descriptor: int, stream: TextIO | None) -> TextIO:
    """Return a new text stream for ``file_descriptor``, with the settings of ``stream``.

    Characters that its encoding cannot represent are escaped, and failed writes are ignored.
    """
    raw = io.BufferedWriter(_EscapedOutput(file_descriptor, "w", closefd=False))
    encoding, by_line = (
        getattr(stream, "encoding", "utf-8"),
        getattr(stream, "line_buffering", False),
    )
    return io.TextIOWrapper(raw, encoding, "backslashreplace", line_buffering=by_line)


def _flush_at_exit(output: Any) -> None:
    """Flush standard output at exit; if output was lost, exit with code 74.

    Output after the reading process has closed the pipe (``| head``) does not count as lost.
    """
    # Python restores the default action of signals in its shutdown, so ignore them from here on.
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    output.flush()
    if (lost := output.buffer.raw.lost) not in (0, errno.EPIPE):
        print(
            f"error: standard output: cannot be written ({os.strerror(lost)})",
            file=sys.stderr,
            flush=True,
        )
        os._exit(74)
