"""Write ``metrics.csv``: one row per step, one column per metric, exact across kill and resume."""

import csv
import io
import math
import time
from pathlib import Path
from typing import Any

from pytorch_lightning.loggers import Logger
from pytorch_lightning.utilities import rank_zero_only

from triptych.files import read_rows
from triptych.run.directory import write_atomic
from triptych.run.leakage import log_line


class MetricsCsv(Logger):
    """A Lightning logger that writes a table, at most once in ``every`` seconds and 1% of the time.

    Figures of a step are merged into its row. A run that goes on from a checkpoint at step s drops the rows
    after s, so each step stands once. ``time`` is the seconds of fitting that led to the row: a resumed run
    counts on from the row it goes on from.
    """

    def __init__(self, path: Path, every: float = 2.0):
        super().__init__()
        self.path, self.every = path, every
        self._rows: dict[int, dict[str, Any]] = {}
        self._columns: dict[str, None] = {}  # in their order
        self._lines: dict[int, str] = {}  # of the rows that have not changed since they were written
        self._written, self._took = time.monotonic(), 0.0
        self._began: float | None = None
        self._before = 0.0

    @property
    def name(self) -> str:
        return "csv"

    @property
    def version(self) -> str:
        return ""

    def keep_until(self, step: int) -> None:
        """Hold the file's rows up to ``step`` for the next write; print a warning if some are damaged."""
        rows = read_rows(self.path)
        header, damaged = next(rows, []), 0
        for cells in rows:
            row = {name: cell for name, cell in zip(header, cells, strict=False) if cell}
            at = row.pop("step", "")
            if len(cells) != len(header) or not at.isdecimal() or any(map(_is_text, row.values())):
                damaged += 1
            elif len(at) < 19 and int(at) <= step:
                self._rows[int(at)] = row
                self._columns |= dict.fromkeys(row)
        if damaged:
            log_line(None, f"{self.path}: {damaged} of its rows are damaged and left out")
        times = [float(row["time"]) for row in self._rows.values() if "time" in row]
        self._before = max(filter(math.isfinite, times), default=0.0)

    @rank_zero_only
    def log_graph(self, *args: Any, **kwargs: Any) -> None:
        """Start the clock; Lightning calls this where a fit begins, and again where a test does."""
        if self._began is None:
            self._began = time.monotonic()

    @property
    def last(self) -> tuple[int, dict[str, Any]]:
        """Return the last step with a row, and a copy of that row; 0 and {} if there is none."""
        step = max(self._rows, default=0)
        return step, dict(self._rows.get(step, {}))

    def time(self, step: int) -> dict[str, Any]:
        """Return {"time": seconds of fitting} of a step's row; {} if there is none."""
        row = self._rows.get(step, {})
        return {"time": float(row["time"])} if "time" in row else {}

    @rank_zero_only
    def log_hyperparams(self, *args: Any, **kwargs: Any) -> None:
        """Do nothing: the configuration has its own file."""

    @rank_zero_only
    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        self.log_graph()
        assert self._began is not None
        row = self._rows.setdefault(step or 0, {})
        row.setdefault("time", round(self._before + time.monotonic() - self._began, 3))  # a test adds none
        row.update({k: v for k, v in metrics.items() if k != "epoch"})
        self._lines.pop(step or 0, None)
        if row.keys() - self._columns.keys():
            self._columns |= dict.fromkeys(row)
            self._lines.clear()

    @rank_zero_only
    def save(self) -> None:
        """Write the table if the last write is long enough ago; Lightning calls this at every row."""
        if time.monotonic() - self._written > max(self.every, 100 * self._took):
            self.flush()

    @rank_zero_only
    def flush(self) -> None:
        """Write the table now, unless there are no rows."""
        if not self._rows and not self.path.exists():
            return
        began = time.monotonic()
        for step in self._rows.keys() - self._lines.keys():
            row = self._rows[step]
            self._lines[step] = _line([step, *(row.get(name, "") for name in self._columns)])
        lines = [_line(["step", *self._columns]), *(self._lines[step] for step in sorted(self._lines))]
        write_atomic(self.path, "".join(lines))
        self._written = time.monotonic()
        self._took = self._written - began

    @rank_zero_only
    def finalize(self, status: str) -> None:
        self.flush()


def _line(cells: list[Any]) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerow(cells)
    return text.getvalue()


def _is_text(cell: str) -> bool:
    try:
        float(cell)
    except ValueError:
        return True
    return False
