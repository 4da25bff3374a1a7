"""`triptych-report DIR [DIR...]`: compare the runs beneath directories; the report goes into the first.

`triptych-report logs`: one page over all sweeps and runs there, with a search.

With `--results FILE` the published claims of all sweeps beneath them, as docs/results.md has them.
"""

from __future__ import annotations

import argparse
import math
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from triptych.errors import StorageError, UserError
from triptych.files import printable
from triptych.run.directory import to_json, write_atomic
from triptych.run.read import find_runs, is_run

if TYPE_CHECKING:
    from triptych.study.render import Report

PORT = 8675  # of --watch


def main(argv: Sequence[str] | None = None) -> int:
    """Return the exit status: 0 written, 1 for a directory that is missing, empty or not writable."""
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
        "--figures",
        type=Path,
        metavar="OUT",
        help="every figure as SVG, PDF and PNG too, every table as CSV and LaTeX, in this directory",
    )
    also = parser.add_mutually_exclusive_group()
    also.add_argument(
        "--wandb",
        action="store_true",
        help="the same comparison in W&B too, as a report; renewed where it was there before",
    )
    also.add_argument(
        "--wandb-json",
        type=Path,
        metavar="FILE",
        help="write W&B's report to a file instead, without a network",
    )
    also.add_argument(
        "--watch",
        action="store_true",
        help="serve the report to this machine's browsers, and renew it as runs grow, until Ctrl-C",
    )
    also.add_argument(
        "--results",
        type=Path,
        metavar="FILE",
        help="write the published claims of all sweeps beneath the directories into one page, and no report; "
        "what it has of other papers stays",
    )
    parser.add_argument("--port", type=int, help=f"of --watch (default: {PORT}; 0: a free one)")
    # argparse's way to change how it refuses
    parser.error = lambda message: sys.exit(_refuse(message))  # type: ignore[method-assign]
    options = parser.parse_args(argv)
    if options.equal_within is not None and not 0 < options.equal_within < math.inf:
        return _refuse(f"--equal-within {options.equal_within:g}: must be a finite number above 0")
    if options.expected is not None and options.expected < 1:
        return _refuse(f"--expected {options.expected}: must be a whole number of at least 1")
    if options.title is not None and not options.title.strip():
        return _refuse("--title: must be a text; leave the option out for the sweep's own")
    if "" in (sys.argv[1:] if argv is None else argv):
        return _refuse("DIR='': must be a directory; . is the current one")
    if not 0 <= (port := PORT if options.port is None else options.port) < 65536:
        return _refuse(f"--port {port}: must be a whole number from 0 to 65535")
    if options.port is not None and not options.watch:
        return _refuse(f"--port {port}: only with --watch")
    for directory in options.dirs:
        if not directory.is_dir():
            return _refuse(f"{directory}: {'not a directory' if directory.exists() else 'no such directory'}")
        if not (options.watch or options.results) and not any(map(is_run, find_runs(directory))):
            return _refuse(
                f"{directory}: no run in it (config.yaml or summary.json, as triptych-train writes them)"
            )
    if options.results:
        return _results(options.results, options.dirs)
    if options.figures and options.figures.exists() and not options.figures.is_dir():
        return _refuse(f"--figures {options.figures}: is a file; must be a directory")
    if options.wandb_json and options.wandb_json.is_dir():
        return _refuse(f"--wandb-json {options.wandb_json}: is a directory; must be a file")
    # drawing is imported only now, so that --help and mistakes answer at once
    from triptych.study.index import is_log, write_index
    from triptych.study.render import write_report
    from triptych.study.terminal import print_table

    settings: dict[str, Any] = {key: getattr(options, key) for key in ("title", "expected", "equal_within")}
    if options.wandb or options.wandb_json:
        from triptych.study.wandb_report import project_of

        option = "--wandb" if options.wandb else f"--wandb-json {options.wandb_json}"
        settings["check"] = lambda story: project_of(story, option)

    def write() -> Report:
        return write_report(*options.dirs, **settings)

    try:
        if len(options.dirs) == 1 and is_log(options.dirs[0]) and not (options.watch or options.figures):
            print(f"Index: {write_index(options.dirs[0])}")
            return 0
        if options.watch:
            return _watch(options.dirs, write, port)
        report = write()
        print_table(options.dirs[0], report=report)
        if options.figures:
            _export(report, options.figures)
        if options.wandb or options.wandb_json:
            _tell_wandb(report, options.wandb_json)
    except UserError as error:
        return _refuse(str(error))
    except OSError as error:
        return _refuse(f"{options.dirs[0]}: the report cannot be written: {error.strerror or error}")
    return 0


def _export(report: Report, out: Path) -> None:
    """Write figures and tables into ``out``."""
    from triptych.study.export import write_figures

    try:
        print(f"Figures: {len(write_figures(report.story, out))} files in {out}")
    except OSError as error:
        raise UserError(f"--figures {out}: cannot be written ({error.strerror or error})") from None


def _tell_wandb(report: Report, file: Path | None) -> None:
    """Save W&B's report, or write it to ``file``."""
    from triptych.study import wandb_report

    entity, project = wandb_report.project_of(report.story)
    if file is not None:
        ours = wandb_report.build_report(report.story, entity or "", project)
        try:
            write_atomic(file, to_json(wandb_report.plain_report(ours)))
        except OSError as error:
            raise UserError(f"--wandb-json {file}: cannot be written ({error.strerror or error})") from None
        print(f"W&B's report: {file}")
        return
    print(wandb_report.save_report(report.story, entity, project, report.html.parent))


def _watch(dirs: Sequence[Path], write: Callable[[], Report], port: int) -> int:
    from triptych.study.watch import Watch

    with Watch(dirs, write, port) as watch:
        signal.signal(signal.SIGINT, lambda *_: watch.stop())
        print(f"{watch.url}: Ctrl-C ends it", flush=True)
        watch.run()
    return 0


def _results(file: Path, roots: Sequence[Path]) -> int:
    from triptych.study.papers.results_page import write_results

    try:
        write_results(file, roots)
    except UnicodeDecodeError:
        return _refuse(f"--results {file}: it is there and is no text")
    except (OSError, StorageError) as error:
        return _refuse(f"--results {file}: it cannot be written: {getattr(error, 'strerror', None) or error}")
    print(file)
    return 0


def _refuse(line: str) -> int:
    print(f"error: {printable(line)}", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main())
