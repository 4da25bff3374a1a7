"""`triptych-report DIR [DIR...]`: compare the runs beneath directories; the report goes into the first.

With `--results FILE` the published claims of all sweeps beneath them, as docs/results.md has them.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from triptych.errors import StorageError
from triptych.runs.read import find_runs, is_run


def main(argv: Sequence[str] | None = None) -> int:
    """Exit status: 0 written, 2 for a directory that is missing, holds no run or cannot be written."""
    parser = argparse.ArgumentParser("triptych-report", description=__doc__)
    parser.add_argument(
        "dirs", nargs="+", type=Path, metavar="DIR", help="a sweep's directory, or a single run's"
    )
    parser.add_argument(
        "--title", help="the page's title (default: what the sweep says, else its directory's name)"
    )
    parser.add_argument("--expected", type=int, help="how many runs the sweep will have")
    parser.add_argument(
        "--equal-within",
        type=float,
        metavar="M",
        help="call settings the same where a test puts their difference within M, in the unit shown",
    )
    parser.add_argument(
        "--results",
        type=Path,
        metavar="FILE",
        help="write the published claims of all sweeps beneath the directories into one page, and no report",
    )
    parser.error = lambda message: sys.exit(_refuse(message))  # type: ignore[method-assign]
    options = parser.parse_args(argv)
    if options.equal_within is not None and not options.equal_within > 0:
        return _refuse(f"--equal-within {options.equal_within:g}: a number above zero is accepted")
    for directory in options.dirs:
        if not directory.is_dir():
            return _refuse(f"{directory}: {'not a directory' if directory.exists() else 'no such directory'}")
        if not options.results and not any(map(is_run, find_runs(directory))):
            return _refuse(
                f"{directory}: no run in it (config.yaml or summary.json, as triptych-train writes them)"
            )
    if options.results:
        return _results(options.results, options.dirs)
    # drawing is imported only now, so that --help and mistakes answer at once
    from triptych.report.render import write_report
    from triptych.report.terminal import print_table

    try:
        report = write_report(
            *options.dirs, title=options.title, expected=options.expected, equal_within=options.equal_within
        )
    except OSError as error:
        return _refuse(f"{options.dirs[0]}: the report cannot be written: {error.strerror or error}")
    print_table(options.dirs[0], report=report)
    return 0


def _results(file: Path, roots: Sequence[Path]) -> int:
    from triptych.report.results_page import results_page
    from triptych.runs.directory import write_atomic

    try:
        write_atomic(file, results_page(roots))
    except (OSError, StorageError) as error:
        return _refuse(f"--results {file}: it cannot be written: {getattr(error, 'strerror', None) or error}")
    print(file)
    return 0


def _refuse(line: str) -> int:
    print(f"triptych-report: {line}", file=sys.stderr)
    return 2
