"""Execute the run in a directory: ``python -m triptych.cli.resume resume=DIR``.

``triptych-train`` prepares a run's directory and then becomes this program. A sweep starts it once,
with ``--serve-jobs``: it forks for each of the sweep's runs (``run/jobs.py``).
"""

import os
import sys

from triptych.errors import UserError
from triptych.files import parse_path
from triptych.run import jobs, processes
from triptych.run.command_errors import one_line_errors
from triptych.run.directory import RunDirectory
from triptych.run.result import result_line
from triptych.run.untrusted import check_run, find_checkpoint

ARGUMENT = "resume="  # prefix of the only argument


def resume(run: RunDirectory) -> None:
    """Execute a run from its last checkpoint and print its result; if finished, only print it."""
    check_run(run)  # before any write or import, as the run may be untrusted
    if run.status != "finished":
        _execute(run)
    elif processes.rank() == 0:
        warn_if_checkpoint_is_lost(run)
    if processes.rank() == 0:
        print_result(run)


def _execute(run: RunDirectory) -> None:
    """Execute a run; on an error, exit without a message in every rank except rank 0."""
    # Torch reads this variable on import. It silences a warning of each DDP process about unused
    # parameters.
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    try:
        from triptych.run.execute import execute

        execute(run)
    except Exception as error:
        if processes.rank() == 0:
            raise
        sys.exit(getattr(error, "exit_code", 1))  # rank 0 reports the error


def print_finished(run: RunDirectory) -> None:
    """Print the result of a run that had finished before this command."""
    print("finished before")
    warn_if_checkpoint_is_lost(run)
    print_result(run)


def warn_if_checkpoint_is_lost(run: RunDirectory) -> None:
    """Warn if the checkpoint that a finished run reports is missing."""
    try:
        find_checkpoint(run.path)
    except UserError as error:
        print(f"the result is kept, but its checkpoint cannot be used: {error}", file=sys.stderr)


def print_result(run: RunDirectory) -> None:
    """Print a run's result in one line, a note on its bound if there is one, and its directory."""
    from triptych.run.read import read_run, reconstruction_notes

    notes = reconstruction_notes([read_run(run.path)])
    print(result_line(run.summary()), *notes, f"run: {run.path}", sep="\n")


def main() -> None:
    """Execute the run that the argument ``resume=DIR`` names, or serve the runs of a sweep."""
    with one_line_errors("train"):
        serving = sys.argv[1:] == [jobs.SERVE]
        if serving:
            jobs.serve()  # returns in a fork for each run, with the run as argument
        if len(sys.argv) != 2:
            typed = " ".join(sys.argv[1:])
            raise UserError(
                f"{typed}: resume=DIR uses the recorded configuration; type no other argument"
            )
        processes.end_with_parent()
        resume(RunDirectory(parse_path(sys.argv[1].removeprefix(ARGUMENT), ARGUMENT)))
        if serving:
            jobs.exit_job()


if __name__ == "__main__":
    main()
