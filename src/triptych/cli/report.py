"""`triptych-report DIR [DIR...]`: compare the runs beneath directories; the report goes into the first.

`triptych-report logs`: one page over all sweeps and runs there, with a search.

With `--results FILE` the published claims of all sweeps beneath them, as docs/results.md has them.
"""

import argparse
import math
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import NoReturn

from triptych.cli.startup import answer_version
from triptych.config.identity import in_root
from triptych.errors import StorageError, UserError
from triptych.files import directory_with_records, typed_path
from triptych.run.read import find_runs, is_run

DIRS = "a sweep's directory, or a single run's; of several the first gets joint_report.html"
WITHIN = "call settings the same where a test puts their difference within M, in the unit shown"
FIGURES = "every figure as SVG, PDF and PNG too, every table as CSV and LaTeX, in this directory"
RESULTS = (
    "write the published claims of all sweeps beneath the directories into one page, and no report; "
    "what it has of other papers stays"
)

REPORT = ("report.html", "joint_report.html")


def main(argv: Sequence[str] | None = None) -> int:
    """Return the exit status: 0 written, 1 for a directory that is missing, empty or not writable."""
    arguments = sys.argv[1:] if argv is None else argv
    answer_version(arguments)
    try:
        options = _parse(arguments)
        if options.results:
            _results(options.results, options.dirs)
        else:
            _report(options)
        return 0
    except UserError as error:
        refused = error
    except OSError as error:
        place = error.filename2 or error.filename or options.dirs[0]
        refused = UserError(f"{place}: cannot be written: {error.strerror or error}")
    print(f"error: {refused}", file=sys.stderr)
    return 1


def _parse(argv: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser("triptych-report", description=__doc__)
    parser.add_argument("dirs", nargs="+", type=partial(typed_path, key="DIR"), metavar="DIR", help=DIRS)
    parser.add_argument("--equal-within", type=float, metavar="M", help=WITHIN)
    parser.add_argument("--figures", type=partial(typed_path, key="--figures"), metavar="OUT", help=FIGURES)
    parser.add_argument("--results", type=partial(typed_path, key="--results"), metavar="FILE", help=RESULTS)
    parser.error = _refuse  # type: ignore[method-assign]  # argparse's way to change how it refuses
    options = parser.parse_args(argv)
    if options.equal_within is not None and not 0 < options.equal_within < math.inf:
        _refuse(f"--equal-within {options.equal_within:g}: must be a finite number above 0")
    if options.results and (options.figures or options.equal_within):
        _refuse("--results: writes no report; leave out --figures and --equal-within")
    for directory in options.dirs:
        if not directory.is_dir():
            problem = "not a directory" if directory.exists() else f"no such directory{in_root(directory)}"
            _refuse(f"{directory}: {problem}")
        if not options.results and not any(map(is_run, find_runs(directory))):
            _refuse(f"{directory}: no run in it (config.yaml or summary.json, as triptych-train writes them)")
    if options.figures and any((options.figures / name).exists() for name in REPORT):
        _refuse(f"--figures {options.figures}: holds a report; choose another directory")
    if options.figures:
        _check_place("--figures", options.figures / "results.csv")
    if options.results:
        _check_place("--results", options.results)
    if options.figures and options.figures.exists() and not options.figures.is_dir():
        _refuse(f"--figures {options.figures}: is a file; must be a directory")
    return options


def _check_place(option: str, file: Path) -> None:
    """Refuse a file where a run or a sweep keeps its records."""
    records = directory_with_records(file)
    if records:
        _refuse(f"{option}: {records} keeps its own records; choose another place")


def _refuse(message: str) -> NoReturn:
    raise UserError(message)


def _report(options: argparse.Namespace) -> None:
    # drawing is imported only now, so that --help and mistakes answer at once
    from triptych.study.render import is_log, print_table, write_index, write_report

    if len(options.dirs) == 1 and is_log(options.dirs[0]) and not (options.figures or options.equal_within):
        print(f"Index: {write_index(options.dirs[0])}")
        return
    report = write_report(*options.dirs, equal_within=options.equal_within)
    print_table(options.dirs[0], report=report)
    if options.figures:
        from triptych.study.render import write_figures

        print(f"Figures: {len(write_figures(report.study, options.figures))} files in {options.figures}")


def _results(file: Path, roots: Sequence[Path]) -> None:
    from triptych.study.results_page import write_results

    try:
        write_results(file, roots)
    except (OSError, StorageError) as error:  # which names a temporary file
        raise UserError(f"--results {file}: cannot be written; choose another place") from error
    print(file)


if __name__ == "__main__":
    sys.exit(main())
