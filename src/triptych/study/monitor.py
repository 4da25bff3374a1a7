"""Show a sweep's live table, and write its report again as runs finish."""

import math
import sys
import threading
import time
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

from triptych.run.directory import RunDirectory
from triptych.run.read import Position, read_position, read_run
from triptych.run.result import ENDED, result_line
from triptych.study.formatting import count_noun, duration, format_number, shorten
from triptych.study.groups import setting_label
from triptych.terminal import escaped_stream

QUIET = 60.0  # seconds without progress after which a run is shown as stalled
OTHER_LINES = 4  # lines of the live table without a run: name, two of counts, and a free one
SHORTEST = 12  # letters of a setting's name that a narrow terminal shows at least
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
        self._begun = time.monotonic()
        self._halt = threading.Event()
        # {(status, cause): the first run that ended so}, by its place "[4/30]"
        self._causes: dict[tuple[str, str], str] = {}
        self._reported = 0  # number of ended runs at the last report
        self._next = 0.0  # earliest time of the next report

    def run(self) -> None:
        """Show the table, or print lines without a terminal, until `stop` is called."""
        from rich.live import Live

        from triptych.study.console import PlainConsole

        console = PlainConsole(sys.stderr)
        if not console.is_terminal:
            return self._print_until_stopped()
        live = Live(console=console, refresh_per_second=2, transient=True)
        # Escape control characters in printed text before Live's streams, which would execute them.
        with (
            live,
            redirect_stdout(escaped_stream(sys.stdout)),
            redirect_stderr(escaped_stream(sys.stderr)),
        ):
            while not self._halt.wait(self.every):
                live.update(self.screen(*console.size))
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
        place = f"[{count}/{len(self.cells)}]"
        if result.error:
            first = self._causes.setdefault((result.status, result.cause), place)
            if first != place:
                line = f"{result.status}, as {first}"
        if name in self.done and result.status == "finished":
            line = f"finished before, {line}"
        print(f"{place} {name}: {line}", file=sys.stderr, flush=True)

    def stop(self) -> None:
        """Stop the thread and wait for its end."""
        self._halt.set()
        self.join()

    def screen(self, width: int, height: int) -> Any:
        """Return `lines` as a text that rich cuts at the terminal's width."""
        from rich.text import Text

        lines = "\n".join(self.lines(width, height))
        return Text(lines, no_wrap=True, overflow="ellipsis")

    def lines(self, width: int, height: int) -> list[str]:
        """Return what a terminal of this size shows: runs at work, then counts of all runs.

        Runs that make no progress come last, and are the first to be left out.
        """
        at_work: dict[str, Position] = {}
        ended = Counter[str]()
        for name in self.cells:
            status = RunDirectory(self.root / name).status
            position = read_position(self.root / name)
            if status in ENDED:
                ended[status] += 1
            elif position is not None:
                at_work[name] = position
        names = sorted(at_work, key=lambda name: is_stalled(at_work[name]))
        shown = {name: at_work[name] for name in names[: height - OTHER_LINES]}
        counts = ", ".join(f"{n} {status}" for status, n in ended.most_common())
        total = f"{ended.total()} of {count_noun(len(self.cells), 'run')}"
        total += self._time_left(ended, sum(position.fraction for position in at_work.values()))
        return [self.root.name, *position_lines(shown, width), counts or "none has ended", total]

    def _time_left(self, ended: Counter[str], begun: float) -> str:
        """Return ", 4 min 10 s left" by the progress since the start; "" if that is not known.

        ``begun``: the number of runs that those at work have done. Runs that failed or diverged do
        not tell how long others take.
        """
        progress = ended["finished"] - len(self.done) + begun
        to_come = len(self.cells) - ended.total() - begun
        if progress <= 0 or to_come <= 0:
            return ""
        return f", {duration((time.monotonic() - self._begun) * to_come / progress)} left"

    def _rewrite_report_if_due(self) -> None:
        """Rewrite the report if more runs have ended and the pause since the last one is over."""
        done = sum(RunDirectory(self.root / name).status in ENDED for name in self.cells)
        began = time.monotonic()
        if done > self._reported and began >= self._next:
            self._reported = done
            try_write_report(self.root)  # an error is printed at the end
            self._next = time.monotonic() + APART * (time.monotonic() - began)


def position_lines(positions: Mapping[str, Position], width: int) -> list[str]:
    """Return a line for each run: its name, shortened to fit the width, and its progress."""
    texts = [progress_text(position) for position in positions.values()]
    letters = width - max(map(len, texts), default=0) - len(" / seed=12  ")
    names = [run_label(name, max(letters, SHORTEST)) for name in positions]
    longest = max(map(len, names), default=0)
    return [f"{name:{longest}}  {text}" for name, text in zip(names, texts, strict=True)]


def run_label(name: str, letters: int) -> str:
    """Return a run's label, such as "epsilon / lr=0.01 / seed=1".

    The setting is shortened to so many letters; the seed follows as it is.
    """
    parts = name.split(",")
    seed = [part for part in parts if part.startswith("seed=")]
    setting = ",".join(part for part in parts if part not in seed)
    label = shorten(setting_label(setting) or setting, letters)
    return " / ".join(filter(None, [label, *seed]))


def is_stalled(progress: Position) -> bool:
    """Return whether a run has made no progress for a while."""
    return time.time() - progress.updated >= QUIET


def progress_text(progress: Position) -> str:
    """Format progress: "fit 1200/4000, val 2.310, 35/s, 1 min 20 s left"."""
    stage = progress.stage
    rate = progress.steps_per_second
    if is_stalled(progress):
        stage = "stalled or interrupted"
        rate = math.nan
    parts = [f"{stage} {progress.step}/{progress.max_steps}"]
    if math.isfinite(progress.bound):
        parts.append(f"val {format_number(progress.bound)}")
    if 0 < rate < math.inf:
        left = (progress.max_steps - progress.step) / rate
        parts += [f"{rate:.3g}/s", f"{duration(left)} left"]
    return ", ".join(parts)
