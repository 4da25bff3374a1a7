"""Show a sweep's live table, and write its report again as runs finish."""

import math
import sys
import threading
import time
from collections.abc import Collection, Sequence
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

from triptych.run.directory import RunDirectory
from triptych.run.read import Position, read_position, read_run
from triptych.run.result import ENDED, result_line
from triptych.study.formatting import duration, format_number
from triptych.study.groups import setting_label
from triptych.terminal import escaped_stream

QUIET = 60.0  # seconds without progress after which a run is shown as stalled
APART = 30  # pause between reports, in multiples of the time that a report took


def try_write_report(root: Path, show: bool = False) -> str:
    """Write the report, and print it with ``show``; return why it cannot be written, or ""."""
    from triptych.study.render import print_table, write_report

    try:
        report = write_report(root)
        if show:
            print_table(report)
    except Exception as error:
        what = f"{type(error).__name__}: {' '.join(str(error).split())}"
        return f"{root}: the report cannot be written ({what}); the runs' results are kept"
    return ""


class Monitor(threading.Thread):
    """A thread that shows each run's progress every second and rewrites the report as runs finish.

    Without a terminal it prints a line whenever a run ends. The runs in ``done``, which had
    finished before, get their lines at the end.
    """

    def __init__(
        self,
        root: Path,
        cells: Sequence[str],
        done: Collection[str] = (),
        every: float = 1.0,
    ):
        super().__init__(daemon=True)
        self.root, self.cells, self.done, self.every = root, cells, done, every
        self._halt = threading.Event()
        self._reported = 0  # number of ended runs at the last report
        self._next = 0.0  # earliest time of the next report

    def run(self) -> None:
        """Show the table, or print lines without a terminal, until `stop` is called."""
        from rich.live import Live

        from triptych.study.console import PlainConsole

        console = PlainConsole(sys.stderr)
        if not console.is_terminal:
            return self._print_until_stopped()
        live = Live(self.table(), console=console, refresh_per_second=2, transient=True)
        # Escape control characters in printed text before Live's streams, which would execute them.
        with (
            live,
            redirect_stdout(escaped_stream(sys.stdout)),
            redirect_stderr(escaped_stream(sys.stderr)),
        ):
            while not self._halt.wait(self.every):
                live.update(self.table())
                self._rewrite_report_if_due()

    def _print_until_stopped(self) -> None:
        """Print a line for each run that ends, until `stop` is called."""
        # Names of runs that were seen unfinished. Others had ended before, or will be restarted.
        begun: set[str] = set()
        printed: set[str] = set()
        halted = False
        while not halted:
            halted = self._halt.wait(self.every)
            for name in self.cells:
                if RunDirectory(self.root / name).status not in ENDED:
                    begun.add(name)
                elif name not in printed and (halted or name in begun):
                    printed.add(name)
                    self._print_end(name, len(printed))
            if not halted:
                self._rewrite_report_if_due()

    def _print_end(self, name: str, count: int) -> None:
        """Print how a run ended: "[3/12] objective=v,seed=1: finished before, test bound 2.09"."""
        result = read_run(self.root / name)
        line = result_line(result)
        if name in self.done and result.status == "finished":
            line = f"finished before, {line}"
        print(f"[{count}/{len(self.cells)}] {name}: {line}", file=sys.stderr, flush=True)

    def stop(self) -> None:
        """Stop the thread and wait for its end."""
        self._halt.set()
        self.join()

    def table(self) -> Any:
        """Return a rich table with one row per run."""
        from rich.progress_bar import ProgressBar
        from rich.table import Table
        from rich.text import Text

        names = [setting_label(cell) or cell for cell in self.cells]
        longest = max(map(len, names), default=3)
        table = Table(
            box=None, padding=(0, 1), title=Text(self.root.name), title_justify="left",
            caption="± is over test items; the report's is over seeds", caption_justify="left",
            show_header=False,
        )  # fmt: skip
        table.add_column(no_wrap=True, min_width=min(24, longest))
        table.add_column(no_wrap=True, min_width=11)
        table.add_column(no_wrap=True)
        for cell, name in zip(self.cells, names, strict=True):
            run = RunDirectory(self.root / cell)
            status = str(run.status)
            progress = read_position(run.path)
            if status in ENDED:
                style = {"finished": "green", "diverged": "yellow"}.get(status, "red")
                if cell in self.done:
                    status += " before"
                table.add_row(name, Text(status, style), result_line(run.summary())[:70])
            elif progress is None:
                table.add_row(name, "waiting", "", style="dim")
            else:
                bar = ProgressBar(total=progress.max_steps, completed=progress.step, width=11)
                table.add_row(name, bar, progress_text(progress))
        return table

    def _rewrite_report_if_due(self) -> None:
        """Rewrite the report if more runs have ended and the pause since the last one is over."""
        done = sum(RunDirectory(self.root / name).status in ENDED for name in self.cells)
        began = time.monotonic()
        if done > self._reported and began >= self._next:
            self._reported = done
            try_write_report(self.root)  # an error is printed at the end
            self._next = time.monotonic() + APART * (time.monotonic() - began)


def progress_text(progress: Position) -> str:
    """Format progress: "fit 1200/4000, val 2.310, 35 steps/s, 1 min 20 s left"."""
    stage = progress.stage
    rate = progress.steps_per_second
    if time.time() - progress.updated >= QUIET:
        stage = "stalled or interrupted"
        rate = math.nan
    parts = [f"{stage} {progress.step}/{progress.max_steps}"]
    if math.isfinite(progress.bound):
        parts.append(f"val {format_number(progress.bound)}")
    if 0 < rate < math.inf:
        left = (progress.max_steps - progress.step) / rate
        parts += [f"{rate:.3g} steps/s", f"{duration(left)} left"]
    return ", ".join(parts)
