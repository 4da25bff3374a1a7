"""Compare the runs beneath directories in a report: `triptych-report DIR [DIR...]`.

The report is written into the first directory.
`triptych-report logs`: an index page of all sweeps and runs beneath logs, with a search field.
`triptych-report DIR --results FILE`: a page with the published claims of all sweeps beneath DIR.
"""

import argparse
import math
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import NoReturn

from triptych.cli.outputs import check_output_file, check_output_folder
from triptych.cli.startup import print_version_and_exit
from triptych.errors import StorageError, UserError
from triptych.files import parse_path
from triptych.run.read import find_runs, is_run

DIRS_HELP = (
    "directory of a sweep or a run; with several, joint_report.html is written into the first"
)
WITHIN_HELP = (
    "test whether settings differ by less than M, in the unit of the report; if so, they are equal"
)
FIGURES_HELP = (
    "also write each figure as SVG, PDF and PNG, and each table as CSV and LaTeX, into this "
    "directory"
)
RESULTS_HELP = (
    "write one page with the published claims of all sweeps below the directories, and no "
    "report; other papers on this page are kept"
)

REPORT = ("report.html", "joint_report.html")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit status.

    0: the report is written; 1: a directory is missing, empty or not writable.
    """
    arguments = sys.argv[1:] if argv is None else argv
    print_version_and_exit(arguments)
    try:
        options = make_parser().parse_args(arguments)
        check_options(options)
        if options.results:
            write_claims(options.results, options.dirs)
        else:
            write_pages(options)
        return 0
    except UserError as error:
        refusal = str(error)
    except OSError as error:
        refusal = f"cannot be written: {error}"
    print(f"error: {refusal}", file=sys.stderr)
    return 1


class Parser(argparse.ArgumentParser):
    """A command-line parser that raises UserError for an invalid argument, and does not exit."""

    def error(self, message: str) -> NoReturn:
        raise UserError(message)


def make_parser() -> Parser:
    """Return the command-line parser of ``triptych-report``."""
    parser = Parser("triptych-report", description=__doc__)
    parser.add_argument(
        "dirs", nargs="+", type=partial(parse_path, key="DIR"), metavar="DIR", help=DIRS_HELP
    )
    parser.add_argument("--equal-within", type=parse_margin, metavar="M", help=WITHIN_HELP)
    outputs = parser.add_mutually_exclusive_group()
    outputs.add_argument(
        "--figures", type=partial(parse_path, key="--figures"), metavar="OUT", help=FIGURES_HELP
    )
    outputs.add_argument(
        "--results", type=partial(parse_path, key="--results"), metavar="FILE", help=RESULTS_HELP
    )
    return parser


def parse_margin(text: str) -> float:
    """Parse the margin within which settings count as equal; argparse reports a ValueError."""
    value = float(text)
    if not 0 < value < math.inf:
        raise ValueError
    return value


def check_options(options: argparse.Namespace) -> None:
    """Raise UserError for directories without runs, and outputs that would replace existing files.

    These files are reports and the records of runs and sweeps.
    """
    for directory in options.dirs:
        if not directory.is_dir():
            raise UserError(f"{directory}: not a directory")
        if not options.results and not any(map(is_run, find_runs(directory))):
            fix = "pass a directory in which triptych-train has written config.yaml or summary.json"
            raise UserError(f"{directory}: no run in it; {fix}")
    if options.results:
        if options.equal_within:
            raise UserError("--equal-within: claims have their own margins; leave it out")
        check_output_file("--results", options.results)
    if options.figures:
        check_output_folder("--figures", options.figures)
        if any((options.figures / name).exists() for name in REPORT):
            raise UserError(
                f"--figures={options.figures}: holds a report; choose another directory"
            )


def write_pages(options: argparse.Namespace) -> None:
    """Write the report of a sweep, or the index of a log directory, and print where it is."""
    # The plotting code is imported late, so that --help and errors appear at once.
    from triptych.study.render import (
        is_log_directory,
        print_table,
        write_figures,
        write_index,
        write_report,
    )

    first = options.dirs[0]
    with_report = len(options.dirs) > 1 or options.figures or options.equal_within
    if is_log_directory(first) and not with_report:
        print(f"Index: {write_index(first)}")
        return
    report = write_report(*options.dirs, equal_within=options.equal_within)
    print_table(report)
    if options.figures:
        print(
            f"Figures: {len(write_figures(report.study, options.figures))} files in "
            f"{options.figures}"
        )


def write_claims(file: Path, roots: Sequence[Path]) -> None:
    """Write the page of published claims."""
    from triptych.study.results_page import write_results

    try:
        write_results(file, roots)
    except (OSError, StorageError) as error:  # The error names a temporary file.
        raise UserError(f"--results {file}: cannot be written; choose another place") from error
    print(file)


if __name__ == "__main__":
    sys.exit(main())
